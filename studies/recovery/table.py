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
from studies.recovery.protocol import OURS, WORDS

Cells = Sequence[dict[str, Any]]
HERE = Path(__file__).parent


def summary(cells: Cells) -> dict[str, Any]:
    """One method over its non-adversarial cells: means and worsts, as shares; recovery where it is defined."""
    own = [one for one in cells if counted(one)]
    known = [one["recovery"] for one in own if one["recovery"] is not None]
    after = [one["rates"]["after"] for one in own]
    moved = [one["rates"]["after"]["utility"] - one["rates"]["before"]["utility"] for one in own]
    refused = [one["rates"]["after"]["over_refusal"] - one["rates"]["before"]["over_refusal"] for one in own]
    spent = [one["cpu_seconds"] + one["shots_seconds"] for one in own]
    return {
        "cells": len(own),
        "passing": sum(not one["lacks"] for one in own),
        "recovery": mean(known),
        "recovery_worst": min(known, default=float("nan")),
        **{name: mean([one[name] for one in after]) for name in ("harmful", "paraphrased", "wrapped", "not_refused")},
        "over_refusal": mean(refused),
        "over_refusal_worst": max(refused),
        "utility": mean(moved),
        "utility_worst": min(moved),
        "extra": max(one["extra"] for one in own),
        "trained": max(one["trained"] for one in own),
        "seconds": mean(spent),
        "seconds_worst": max(spent),
        "gate": sum(one["verdict"]["outcome"] == "pass" for one in own),
    }


def mean(values: Sequence[float]) -> float:
    """The mean; NaN of none."""
    return sum(values) / len(values) if values else float("nan")


def dominated(name: str, found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Methods at least as good as ``name`` in mean recovery and mean utility change, and better in one."""
    own = found[name]
    keys = ("recovery", "utility")
    return [
        other
        for other, one in found.items()
        if other != name
        and all(one[key] >= own[key] - 1e-9 for key in keys)
        and any(one[key] > own[key] + 1e-9 for key in keys)
    ]


HEAD = (
    "| method | cells inside all limits | gate passes | recovery, mean / worst | HRR direct | paraphrased | wrapped "
    "| not refused | over-refusal, mean / worst | utility, mean / worst | extra | numbers trained | CPU s |"
)


def methods_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A row per method, the most passing cells first."""
    lines = [HEAD, "|" + "---|" * 13]
    ranked = sorted(found, key=lambda name: (-found[name]["passing"], -found[name]["recovery"]))
    for name in ranked:
        one = found[name]
        shown = f"**{name}**" if name == OURS else name
        lines.append(
            f"| {shown} | {one['passing']} of {one['cells']} | {one['gate']} "
            f"| {points(one['recovery'])} / {points(one['recovery_worst'])} "
            f"| {points(one['harmful'])} | {points(one['paraphrased'])} | {points(one['wrapped'])} "
            f"| {points(one['not_refused'])} | {signed(one['over_refusal'])} / {signed(one['over_refusal_worst'])} "
            f"| {signed(one['utility'])} / {signed(one['utility_worst'])} | {100 * one['extra']:.2f} "
            f"| {one['trained']} | {one['seconds']:.1f} |"
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
    for one in cells:
        before, after = one["rates"]["before"], one["rates"]["after"]
        harm = [" / ".join(points(arm[k]) for k in ("harmful", "paraphrased", "wrapped")) for arm in (before, after)]
        regained = "n/a" if one["recovery"] is None else points(one["recovery"])
        lines.append(
            f"| {one['target']} ({WORDS[one['target']]}) | {one['seed']} | {one['relative_change']:.2f} | {harm[0]} "
            f"| {harm[1]} | {regained} | {points(before['over_refusal'])} -> {points(after['over_refusal'])} "
            f"| {points(before['utility'])} -> {points(after['utility'])} | {', '.join(one['lacks']) or '-'} "
            f"| {one['verdict']['outcome']} |"
        )
    return "\n".join(lines)


def missed_table(cells: Cells) -> str:
    """What was measured at the cells of one method that miss a limit, beside the median of those that miss none."""
    lines = [
        "| target | seed | lacks | change of weights | KL left on validation: safety | benign | task |",
        "|" + "---|" * 7,
    ]
    asked = [one for one in cells if counted(one)]
    within = [one for one in asked if not one["lacks"]]
    for one in [one for one in asked if one["lacks"]]:
        kl = " | ".join(f"{one['kl']['after'][kind]:.4f}" for kind in SHOT_KINDS)
        lacks = ", ".join(one["lacks"])
        lines.append(f"| {one['target']} | {one['seed']} | {lacks} | {one['relative_change']:.2f} | {kl} |")
    if within:
        middle = " | ".join(f"{median([one['kl']['after'][kind] for one in within]):.4f}" for kind in SHOT_KINDS)
        change = median([one["relative_change"] for one in within])
        lines.append(f"| median of the {len(within)} others | | - | {change:.2f} | {middle} |")
    return "\n".join(lines)


def forecast_table(cells: Cells) -> str:
    """The forecast of calibrate, made on validation shots, beside the test split: adversarial targets included."""
    lines = ["| forecast | cells | recovery or over-refusal missed | gate passes |", "|" + "---|" * 4]
    for word in ("reachable", "doubtful"):
        own = [
            one
            for one in cells
            if (max(one["kl"]["after"][kind] for kind in SHOT_KINDS[:2]) > MAX_LOSS) == (word != "reachable")
        ]
        missed = sum(bool({"recovery", "over-refusal"} & set(one["lacks"])) for one in own)
        passes = sum(one["verdict"]["outcome"] == "pass" for one in own)
        lines.append(f"| {word} | {len(own)} | {missed} | {passes} |")
    return "\n".join(lines)


def ablation_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A row per ingredient that was changed."""
    lines = [
        "| changed | cells inside all limits | recovery, mean / worst | over-refusal, worst | utility, worst | extra |",
        "|" + "---|" * 6,
    ]
    for name, one in found.items():
        lines.append(
            f"| {name} | {one['passing']} of {one['cells']} | {points(one['recovery'])} / "
            f"{points(one['recovery_worst'])} | {signed(one['over_refusal_worst'])} | {signed(one['utility_worst'])} "
            f"| {100 * one['extra']:.2f} |"
        )
    return "\n".join(lines)


def write_files(cells: Mapping[str, Cells], folder: Path = HERE) -> None:
    """``cells.csv`` and ``cells.json``: every cell of every method."""
    flat = [one for some in cells.values() for one in some]
    (folder / "cells.json").write_text(json.dumps([plain(one) for one in flat], indent=None) + "\n")
    names = ("harmful", "paraphrased", "wrapped", "not_refused", "over_refusal", "utility", "incoherent")
    with (folder / "cells.csv").open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        arms = ("before", "after", "aligned")
        out.writerow(
            ["method", "target", "seed", "recovery", "extra", "trained", "cpu_seconds", "outcome", "lacks"]
            + [f"{arm}_{name}" for arm in arms for name in names]
        )
        for one in flat:
            spent = round(one["cpu_seconds"] + one["shots_seconds"], 2)
            out.writerow(
                [one["method"], one["target"], one["seed"], one["recovery"], one["extra"], one["trained"], spent]
                + [one["verdict"]["outcome"], " ".join(one["lacks"])]
                + [round(one["rates"][arm][name], 5) for arm in arms for name in names]
            )


def plain(value: Any) -> Any:
    """Floats rounded, so that the file reads."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return round(value, 5) if isinstance(value, float) else value


def plot(found: Mapping[str, Mapping[str, Any]], path: Path = HERE / "safety-utility.png") -> None:
    """A point per method: mean recovery over mean utility change, the worst cell at the end of a thin line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 5.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, one in found.items():
        colour = "#c1121f" if name == OURS else "#2a6f97"
        x, y = 100 * one["utility"], 100 * one["recovery"]
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
