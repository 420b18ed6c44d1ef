"""The figures of the explanation pages, as SVG files beside them: ``python docs/gen/figures.py``.

The same content gives the same bytes. Numbers come from the gate's own functions.
"""

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams.update(
    {
        "svg.hashsalt": "safegene",
        "svg.fonttype": "path",
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)

from matplotlib import pyplot as plt  # noqa: E402 (after the backend)
from matplotlib.patches import FancyArrowPatch, Rectangle  # noqa: E402

from safegene.gate.statistics import betting_upper  # noqa: E402

EXPLANATION = Path(__file__).resolve().parents[1] / "explanation"
INK, FIXED, FITTED, BAD = "#16191d", "#9db7e4", "#1f4fa8", "#b3261e"


def bounds(path: Path) -> None:
    """The upper bound of the paired difference over the behaviours asked, for three candidates."""
    figure, axes = plt.subplots(figsize=(7, 3.4))
    rows = (
        (0, "no newly harmful reply", FITTED, "-"),
        (40, "1 in 40 newly harmful", INK, "--"),
        (10, "1 in 10", BAD, "-."),
    )
    counts = list(range(15, 301, 15))
    for every, label, colour, style in rows:
        values = [betting_upper(_differences(n, every), 0.045) for n in counts]
        axes.plot(counts, [100 * value for value in values], style, color=colour, label=label)
    axes.axhline(5, color="#7b8592", linewidth=1)
    axes.text(300, 3.2, "margin, 5 points", ha="right", color="#57606c")
    axes.set(xlabel="behaviours asked", ylabel="upper bound of the difference, points", ylim=(0, 30))
    axes.legend(frameon=False)
    _save(figure, path)


def _differences(n: int, every: int) -> list[float]:
    bad = math.floor(n / every) if every else 0
    return [1.0] * bad + [0.0] * (n - bad)


def core(path: Path) -> None:
    """W_t + B L R A, with the shapes."""
    figure, axes = plt.subplots(figsize=(7, 2.6))
    blocks = (
        (0.0, 0.0, 2.0, 2.0, "#e8ebef", "W", "target, unchanged"),
        (3.0, 0.0, 0.8, 2.0, FIXED, "B", "fixed"),
        (4.1, 0.6, 0.3, 0.8, FITTED, "L", "fitted"),
        (4.7, 0.85, 0.8, 0.3, FITTED, "R", "fitted"),
        (5.8, 0.6, 2.0, 0.8, FIXED, "A", "fixed"),
    )
    for left, bottom, width, height, colour, name, what in blocks:
        axes.add_patch(Rectangle((left, bottom), width, height, facecolor=colour, edgecolor=INK))
        centre = left + width / 2
        white = colour == FITTED
        axes.text(centre, bottom + height / 2, name, ha="center", va="center", color="white" if white else INK)
        axes.text(centre, -0.25, what, ha="center", va="top", fontsize=8, color="#57606c")
    axes.text(2.5, 1.0, "+", ha="center", va="center", fontsize=16)
    sizes = ((3.4, 2.1, "out × r"), (4.2, 1.5, "r × k"), (5.15, 1.25, "k × r"), (6.8, 1.5, "r × in"))
    for x, y, text in sizes:
        axes.text(x, y, text, ha="center", va="bottom", fontsize=8)
    axes.set(xlim=(-0.1, 8), ylim=(-0.7, 2.5), aspect="equal")
    axes.axis("off")
    _save(figure, path)


def ledger(path: Path) -> None:
    """Records, tip, channel pointer and releases."""
    figure, axes = plt.subplots(figsize=(7, 2.6))
    names = ("record 0\nfail", "record 1\npass", "record 2\ninconclusive", "record 3\nfail")
    for at, name in enumerate(names):
        _box(axes, 2 * at, 1.0, name, FIXED if "pass" in name else "#e8ebef")
        if at:
            _arrow(axes, (2 * at, 1.35), (2 * at - 0.5, 1.35))
    _box(axes, 6, 2.3, "tip", "white")
    _arrow(axes, (6.75, 2.3), (6.75, 1.7))
    _box(axes, 2, 2.3, "channel\nproduction", "white")
    _arrow(axes, (2.75, 2.3), (2.75, 1.7))
    _box(axes, 2, -0.3, "release", "white")
    _arrow(axes, (2.75, 1.0), (2.75, 0.4))
    axes.set(xlim=(-0.1, 7.7), ylim=(-0.4, 3.1))
    axes.axis("off")
    _save(figure, path)


def _box(axes: Any, left: float, bottom: float, text: str, colour: str) -> None:
    axes.add_patch(Rectangle((left, bottom), 1.5, 0.7, facecolor=colour, edgecolor=INK))
    axes.text(left + 0.75, bottom + 0.35, text, ha="center", va="center", fontsize=8)


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color="#57606c"))


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    plt.close(figure)


if __name__ == "__main__":
    bounds(EXPLANATION / "bounds.svg")
    core(EXPLANATION / "core.svg")
    ledger(EXPLANATION / "ledger.svg")
