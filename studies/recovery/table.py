"""Tables of the cells by method and by cell, the plot, CSV and JSON."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from safegene.repair.diagnosis.findings import MAX_LOSS
from safegene.repair.shots import SHOT_KINDS
from studies.recovery.cells import counted
from studies.recovery.fresh import FRESH_WORDS
from studies.recovery.protocol import OURS
from studies.recovery.protocol import WORDS as OLD_WORDS

WORDS = OLD_WORDS | FRESH_WORDS
Cells = Sequence[dict[str, Any]]
HERE = Path(__file__).parent


def summary(cells: Cells) -> dict[str, Any]:
    """One method over its non-adversarial cells: means and worsts, as shares; recovery where it is defined."""
    counting = [cell for cell in cells if counted(cell)]
    known = [cell["recovery"] for cell in counting if cell["recovery"] is not None]
    after = [cell["rates"]["after"] for cell in counting]
    moved = [cell["rates"]["after"]["utility"] - cell["rates"]["before"]["utility"] for cell in counting]
    refused = [cell["rates"]["after"]["over_refusal"] - cell["rates"]["before"]["over_refusal"] for cell in counting]
    spent = [cell["cpu_seconds"] + cell["shots_seconds"] for cell in counting]
    return {
        "cells": len(counting),
        "passing": sum(not cell["lacks"] for cell in counting),
        "recovery": mean(known),
        "recovery_worst": min(known, default=float("nan")),
        **{name: mean([cell[name] for cell in after]) for name in ("harmful", "paraphrased", "wrapped", "not_refused")},
        "over_refusal": mean(refused),
        "over_refusal_worst": max(refused),
        "utility": mean(moved),
        "utility_worst": min(moved),
        "extra": max(cell["extra"] for cell in counting),
        "trained": max(cell["trained"] for cell in counting),
        "seconds": mean(spent),
        "seconds_worst": max(spent),
        "gate": sum(cell["verdict"]["outcome"] == "pass" for cell in counting),
    }


def mean(values: Sequence[float]) -> float:
    """The mean; NaN of none."""
    return sum(values) / len(values) if values else float("nan")


def dominated(name: str, summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Methods at least as good as ``name`` in mean recovery and mean utility change, and better in one."""
    reference = summaries[name]
    keys = ("recovery", "utility")
    return [
        other
        for other, row in summaries.items()
        if other != name
        and all(row[key] >= reference[key] - 1e-9 for key in keys)
        and any(row[key] > reference[key] + 1e-9 for key in keys)
    ]


HEAD = (
    "| method | cells inside all limits | gate passes | recovery, mean / worst | HRR direct | paraphrased | wrapped "
    "| not refused | over-refusal, mean / worst | utility, mean / worst | extra | numbers trained | CPU s |"
)


def methods_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """A row per method, the most passing cells first."""
    lines = [HEAD, "|" + "---|" * 13]
    ranked = sorted(summaries, key=lambda name: (-summaries[name]["passing"], -summaries[name]["recovery"]))
    for name in ranked:
        row = summaries[name]
        shown = f"**{name}**" if name == OURS else name
        lines.append(
            f"| {shown} | {row['passing']} of {row['cells']} | {row['gate']} "
            f"| {points(row['recovery'])} / {points(row['recovery_worst'])} "
            f"| {points(row['harmful'])} | {points(row['paraphrased'])} | {points(row['wrapped'])} "
            f"| {points(row['not_refused'])} | {signed(row['over_refusal'])} / {signed(row['over_refusal_worst'])} "
            f"| {signed(row['utility'])} / {signed(row['utility_worst'])} | {100 * row['extra']:.2f} "
            f"| {row['trained']} | {row['seconds']:.1f} |"
        )
    return "\n".join(lines)


def points(value: float) -> str:
    """A share in percent."""
    return f"{100 * value:.1f}"


def signed(value: float) -> str:
    """A difference of shares in points."""
    return f"{100 * value:+.1f}"


def cells_table(cells: Cells) -> str:
    """A row per cell of one method."""
    lines = [
        "| target | seed | change of weights | HRR direct / paraphrased / wrapped before | after | recovery "
        "| over-refusal | utility | lacks | gate |",
        "|" + "---|" * 10,
    ]
    for cell in cells:
        before, after = cell["rates"]["before"], cell["rates"]["after"]
        harm = [" / ".join(points(arm[k]) for k in ("harmful", "paraphrased", "wrapped")) for arm in (before, after)]
        regained = "n/a" if cell["recovery"] is None else points(cell["recovery"])
        lines.append(
            f"| {cell['target']} ({WORDS[cell['target']]}) | {cell['seed']} | {cell['relative_change']:.2f} "
            f"| {harm[0]} | {harm[1]} | {regained} "
            f"| {points(before['over_refusal'])} -> {points(after['over_refusal'])} "
            f"| {points(before['utility'])} -> {points(after['utility'])} | {', '.join(cell['lacks']) or '-'} "
            f"| {cell['verdict']['outcome']} |"
        )
    return "\n".join(lines)


def missed_table(cells: Cells) -> str:
    """The measurements of one method's cells that miss a limit, and the median of the cells that miss none."""
    lines = [
        "| target | seed | lacks | change of weights | KL left on validation: safety | benign | task |",
        "|" + "---|" * 7,
    ]
    asked = [cell for cell in cells if counted(cell)]
    within = [cell for cell in asked if not cell["lacks"]]
    for cell in [cell for cell in asked if cell["lacks"]]:
        kl = " | ".join(f"{cell['kl']['after'][kind]:.4f}" for kind in SHOT_KINDS)
        lacks = ", ".join(cell["lacks"])
        lines.append(f"| {cell['target']} | {cell['seed']} | {lacks} | {cell['relative_change']:.2f} | {kl} |")
    if within:
        middle = " | ".join(f"{median([cell['kl']['after'][kind] for cell in within]):.4f}" for kind in SHOT_KINDS)
        change = median([cell["relative_change"] for cell in within])
        lines.append(f"| median of the {len(within)} others | | - | {change:.2f} | {middle} |")
    return "\n".join(lines)


def forecast_table(cells: Cells) -> str:
    """The prediction on validation shots compared with the test split, adversarial targets included."""
    lines = ["| forecast | cells | recovery or over-refusal missed | gate passes |", "|" + "---|" * 4]
    for word in ("reachable", "doubtful"):
        forecast = [
            cell
            for cell in cells
            if (max(cell["kl"]["after"][kind] for kind in SHOT_KINDS[:2]) > MAX_LOSS) == (word != "reachable")
        ]
        missed = sum(bool({"recovery", "over-refusal"} & set(cell["lacks"])) for cell in forecast)
        passes = sum(cell["verdict"]["outcome"] == "pass" for cell in forecast)
        lines.append(f"| {word} | {len(forecast)} | {missed} | {passes} |")
    return "\n".join(lines)


def ablation_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """A row per changed setting."""
    lines = [
        "| changed | cells inside all limits | recovery, mean / worst | over-refusal, worst | utility, worst | extra |",
        "|" + "---|" * 6,
    ]
    for name, row in summaries.items():
        lines.append(
            f"| {name} | {row['passing']} of {row['cells']} | {points(row['recovery'])} / "
            f"{points(row['recovery_worst'])} | {signed(row['over_refusal_worst'])} | {signed(row['utility_worst'])} "
            f"| {100 * row['extra']:.2f} |"
        )
    return "\n".join(lines)


def write_files(cells: Mapping[str, Cells], folder: Path = HERE) -> None:
    """``cells.csv`` and ``cells.json``: every cell of every method."""
    flat = [cell for method_cells in cells.values() for cell in method_cells]
    (folder / "cells.json").write_text(json.dumps([plain(cell) for cell in flat], indent=None) + "\n")
    names = ("harmful", "paraphrased", "wrapped", "not_refused", "over_refusal", "utility", "incoherent")
    with (folder / "cells.csv").open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        arms = ("before", "after", "aligned")
        out.writerow(
            ["method", "target", "seed", "recovery", "extra", "trained", "cpu_seconds", "outcome", "lacks"]
            + [f"{arm}_{name}" for arm in arms for name in names]
        )
        for cell in flat:
            spent = round(cell["cpu_seconds"] + cell["shots_seconds"], 2)
            out.writerow(
                [cell["method"], cell["target"], cell["seed"], cell["recovery"], cell["extra"], cell["trained"], spent]
                + [cell["verdict"]["outcome"], " ".join(cell["lacks"])]
                + [round(cell["rates"][arm][name], 5) for arm in arms for name in names]
            )


def plain(value: Any) -> Any:
    """Floats rounded, so that the file reads."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return round(value, 5) if isinstance(value, float) else value


def plot(summaries: Mapping[str, Mapping[str, Any]], path: Path = HERE / "safety-utility.png") -> None:
    """A point per method: mean recovery over mean utility change, the worst cell at the end of a thin line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 5.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, row in summaries.items():
        colour = "#c1121f" if name == OURS else "#2a6f97"
        x, y = 100 * row["utility"], 100 * row["recovery"]
        axes.scatter([x], [y], color=colour, s=60 if name == OURS else 30, zorder=3)
        axes.annotate(name, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8, color=colour)
    axes.set_xscale("symlog", linthresh=1.0)
    axes.axhline(95, color="#8d99ae", linewidth=0.8, linestyle="--")
    axes.axvline(-0.5, color="#8d99ae", linewidth=0.8, linestyle="--")
    axes.set_xlabel("mean change of task accuracy, points")
    axes.set_ylabel("mean recovery, %")
    axes.set_title("Tiny family, three seeds, non-adversarial targets, test split", fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, metadata={"Software": None})
