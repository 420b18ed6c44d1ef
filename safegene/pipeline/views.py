"""What DVC and people look at beside an artefact, made from its files: metrics, and pictures that need no network.

A view is no part of its artefact, so that no digest depends on how a picture is drawn. Pictures are SVG: `dvc plots
show` embeds them as they are, while its charts load a script from another server.
"""

import csv
import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from safegene.workspace.digest import canonical_json

if TYPE_CHECKING:
    from safegene.gate import VerdictFile

LABEL, PLOT, ROW, TOP = 190, 380, 20, 58  # widths and heights in pixels
AXIS, GRID = "#111827", "#d1d5db"
COLOURS = ("#2a6f97", "#b3261e", "#6b7280", "#7c3aed")


class Bar(NamedTuple):
    """A line of a chart: a label, a value, and the ends of its interval or range."""

    label: str
    value: float
    low: float
    high: float


def metrics(verdict: Path) -> str:
    """Numbers for ``dvc metrics``, one level deep: each rate with its n and interval; what is unknown is absent.

    `dvc metrics diff` shows all that changed, so a rate that moved with its n shows both.
    """
    content = _verdict(verdict)
    numbers: dict[str, float] = json.loads((verdict / "metrics.json").read_bytes())
    for measure, arms in content.rates.items():
        for arm, rate in arms.items():
            if rate.rate is not None and rate.interval is not None:
                low, high = rate.interval
                numbers |= {f"{measure}_{arm}_{name}": n for name, n in (("low", low), ("high", high), ("n", rate.n))}
    return canonical_json(numbers).decode() + "\n"


def rates_picture(verdict: Path) -> str:
    """Every rate of a verdict with its 95% interval and n, on one axis from 0 to 100%."""
    content = _verdict(verdict)
    bars = [
        Bar(f"{measure} {arm}, n = {rate.n}", 100 * rate.rate, 100 * rate.interval[0], 100 * rate.interval[1])
        for measure, arms in content.rates.items()
        for arm, rate in arms.items()
        if rate.rate is not None and rate.interval is not None
    ]
    return _chart("Rates in percent, with 95% intervals", bars, (0.0, 100.0))


def coefficients_picture(candidate: Path) -> str:
    """The coefficients of each layer: their mean, and the range from the smallest to the largest."""
    layers: dict[str, list[float]] = {}
    with (candidate / "coefficients.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if math.isfinite(value := float(row["alpha"])):
                layers.setdefault(row["layer"], []).append(value)
    bars = [
        Bar(f"layer {layer}, {len(values)} coefficients", sum(values) / len(values), min(values), max(values))
        for layer, values in layers.items()
    ]
    ends = (min([0.0, *(bar.low for bar in bars)]), max([0.0, *(bar.high for bar in bars)]))
    return _chart("Coefficients by layer: mean (dot), smallest to largest (line)", bars, ends)


def _verdict(folder: Path) -> "VerdictFile":
    from safegene.gate import VerdictFile

    path = folder / "verdict.json"
    return VerdictFile.parse(path.read_bytes(), where=str(path))


def _chart(title: str, bars: Sequence[Bar], ends: tuple[float, float]) -> str:
    """Dots with their ranges on one axis that shows 0, as a file of its own, readable on dark and light pages."""
    low, high = ends if ends[0] < ends[1] else (0.0, 1.0)
    bottom = TOP + ROW * len(bars)

    def x(value: float) -> str:
        return f"{LABEL + PLOT * (value - low) / (high - low):.1f}"

    ticks = sorted({0.0, *(low + (high - low) * i / 4 for i in range(5))})
    body = [
        f'<line x1="{x(tick)}" x2="{x(tick)}" y1="{TOP}" y2="{bottom}" stroke="{AXIS if tick == 0 else GRID}"/>'
        f'<text x="{x(tick)}" y="{TOP - 6}" text-anchor="middle">{tick:.3g}</text>'
        for tick in ticks
    ]
    for at, bar in enumerate(bars):
        y, colour = TOP + ROW * at + ROW / 2, COLOURS[_shade(bar.label)]
        body.append(
            f'<text x="{LABEL - 8}" y="{y + 4}" text-anchor="end">{escape(bar.label)}</text>'
            f'<line x1="{x(bar.low)}" x2="{x(bar.high)}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>'
            f'<circle cx="{x(bar.value)}" cy="{y}" r="4" fill="{colour}"/>'
            f'<text x="{LABEL + PLOT + 12}" y="{y + 4}">{bar.value:.3g} ({bar.low:.3g} to {bar.high:.3g})</text>'
        )
    width, height = LABEL + PLOT + 170, bottom + 12
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="sans-serif" font-size="12" fill="#111827"><title>{escape(title)}</title>'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/><text x="8" y="20" font-weight="bold">{escape(title)}'
        f"</text>{''.join(body)}</svg>\n"
    )


def _shade(label: str) -> int:
    """One colour for each arm of the rates."""
    arm = label.partition(",")[0].rpartition(" ")[2]
    return {"before": 1, "aligned": 2, "incumbent": 3}.get(arm, 0)
