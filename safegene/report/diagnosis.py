"""A target's diagnosis as a table, pictures and sentences; stage ``calibrate`` wrote it in ``coefficients.json``."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safegene.errors import ArtifactError, StaleArtifact
from safegene.repair.diagnosis.findings import Diagnosis
from safegene.report.state import read_state
from safegene.text import percent, visible
from safegene.workspace.layout import Workspace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

NAMES = {
    "safety_after": "loss on safety replies",
    "benign_after": "loss on benign replies",
    "mismatches": "digests of another family",
    "unrelated": "change of the weights",
    "task_change": "change of the weights",
    "cosine": "cosine with the vector",
    "outside": "vector not used",
    "unreached": "change out of reach",
    "kept": "delta kept",
    "surrogates": "degraded models",
    "shots_fit": "safety shots fitted",
    "fall": "fall at the end of the fit",
}
AT_LEAST = ("kept", "surrogates", "shots_fit")
SHARES = ("unrelated", "task_change", "outside", "unreached", "kept", "fall")
BLUE, GREY, RED = "#2a6f97", "#d0d7de", "#b3261e"


@dataclass(frozen=True)
class TargetDiagnosis:
    """The diagnosis of a calibrated target.

    Attributes:
        target: its name.
        diagnosis: what `safegene.repair.diagnosis` measured and concluded.
        history: (step, objective on the validation shots) of the fit.
        outcome: of the gate's verdict on this candidate; "" before there is one.
    """

    target: str
    diagnosis: Diagnosis
    history: Sequence[tuple[float, float]]
    outcome: str = ""


def read_diagnosis(workspace: Workspace, target: str) -> TargetDiagnosis:
    """The diagnosis of a target, from its verified candidate.

    Raises:
        ParamsError: there is no such target.
        ArtifactError: it is not calibrated yet, or was calibrated by a version of safegene without a diagnosis.
        StaleArtifact: its candidate was altered, or was made from something that has changed since.
    """
    workspace.require_target(target)
    (state,) = read_state(workspace, targets=[target], live=lambda _: None).targets
    candidate, coefficients = state.artefacts["candidate"], state.coefficients
    rerun = f"run `safegene run {target}`"
    if candidate.problem:
        raise StaleArtifact(candidate.problem, remedy=rerun)
    if coefficients is None:
        raise ArtifactError(f"expected a calibrated target, got none of {target} in {candidate.path}", remedy=rerun)
    if coefficients.diagnosis is None:
        raise ArtifactError(
            f"expected a diagnosis in {candidate.path / 'coefficients.json'}, got none: an older safegene wrote it",
            remedy=f"calibrate it again: `safegene calibrate {target}`",
        )
    history = [(step, value) for step, value in coefficients.history if value is not None]
    return TargetDiagnosis(target, coefficients.diagnosis, history, state.outcome or "")


def forecast(diagnosis: Diagnosis) -> str:
    """The forecast in words, with the name of every measurement beyond its limit."""
    exceeded = ", ".join(dict.fromkeys(NAMES[finding.what] for finding in diagnosis.findings))
    if diagnosis.outlook == "doubtful":
        return f"Doubtful: the repair may not pass. Beyond the limit: {exceeded}."
    if exceeded:
        return f"Reachable: the replies after the repair are close enough. Beyond the limit all the same: {exceeded}."
    return "Reachable: every measurement is within its limit."


def sentences(diagnosis: Diagnosis | None) -> tuple[str, ...]:
    """The forecast and every finding as sentences; none where there is no diagnosis."""
    if diagnosis is None:
        return ()
    words = f"Forecast before the gate: {forecast(diagnosis)}"
    found = [f"{_capital(finding.words)}. Try: {finding.remedy}." for finding in diagnosis.findings]
    return (words, *found, *coverage(diagnosis))


def coverage(diagnosis: Diagnosis) -> tuple[str, ...]:
    """A sentence on where the fine-tune's change lies out of the vector's reach; none where it was not measured."""
    shares = sorted(((share, kind) for kind, share in diagnosis.unreached.items() if share is not None), reverse=True)
    if not shares:
        return ()
    parts = ", ".join(f"{kind} {share:.1%}" for share, kind in shares)
    total = sum(share for share, _ in shares)
    return (f"The safety vector does not reach {total:.1%} of what fine-tuning changed: {parts}.",)


def headline(target: TargetDiagnosis) -> str:
    """The forecast in one line, and the verdict where there is one."""
    said = f"{target.target}: {forecast(target.diagnosis)} A forecast from the validation shots; the gate "
    decided = f"has decided since: {target.outcome} (`safegene gate show {target.target}` says why)."
    return said + (decided if target.outcome else "decides.")


def table(target: TargetDiagnosis) -> "Table":
    """The findings first, each with its limit and a remedy; then the measurements within their limits."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "measured", "limit", "finding"):
        drawn.add_column(name, justify="right" if name in ("measured", "limit") else "left", overflow="fold")
    diagnosis = target.diagnosis
    for finding in diagnosis.findings:
        what, tone = finding.what, "red" if finding.kind == "symptom" else "yellow"
        words = f"{escape(visible(finding.words))}; try: {escape(visible(finding.remedy))}"
        drawn.add_row(f"[{tone}]{NAMES[what]}[/]", number(what, finding.measured), limit(what, finding.limit), words)
    listed = {NAMES[finding.what] for finding in diagnosis.findings}
    for what, name in NAMES.items():
        if what in diagnosis.measured and what in diagnosis.limits and name not in listed:
            within = limit(what, diagnosis.limits[what])
            drawn.add_row(name, number(what, diagnosis.measured[what]), within, "[green]no finding[/]")
    return drawn


def limit(what: str, value: float) -> str:
    """A limit as text, with the side on which there is no finding."""
    return f"{'at least' if what in AT_LEAST else 'below' if what == 'cosine' else 'at most'} {number(what, value)}"


def number(what: str, value: float | None) -> str:
    """A measurement as text: shares in percent, counts whole."""
    if value is None:
        return "not finite"
    if what in SHARES:
        return percent(value)
    return f"{value:d}" if isinstance(value, int) else f"{value:.3f}"


def draw(target: TargetDiagnosis, folder: Path) -> tuple[Path, ...]:
    """Write ``layers.png``, and ``history.png`` where something was fitted; equal input gives equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "layers.png"]
    _save(_layers(target), paths[0])
    if len(target.history) > 1:
        paths.append(folder / "history.png")
        _save(_history(target), paths[1])
    else:
        (folder / "history.png").unlink(missing_ok=True)
    return tuple(paths)


def _layers(target: TargetDiagnosis) -> "Figure":
    """Per layer: what fine-tuning changed, where the vector lies and how much of it is used, and the coefficients."""
    layers = target.diagnosis.layers
    places = [int(name) for name in layers]

    def heights(name: str) -> list[float]:
        values = (layer[name] for layer in layers.values())
        return [math.nan if value is None else value for value in values]

    figure = _figure(6.2)
    panels: Sequence[Axes] = figure.subplots(3, 1, sharex=True)
    panels[0].bar(places, heights("task_change"), color=BLUE)
    panels[0].axhline(target.diagnosis.limits["task_change"], color=RED, linestyle="--", linewidth=1.0)
    panels[0].set(ylabel="change of\nthe weights", title=f"{target.target}: dashed, the limit; grey, not used")
    panels[1].bar(places, heights("vector"), color=GREY)
    panels[1].bar(places, heights("used"), color=BLUE)
    panels[1].set(ylabel="share of the\nvector's energy")
    panels[2].bar(places, heights("coefficients"), color=BLUE)
    panels[2].set(ylabel="mean size of\ncoefficients", xlabel="layer")
    if len(places) <= 24:
        panels[2].set_xticks(places)
    return figure


def _history(target: TargetDiagnosis) -> "Figure":
    """The objective on the validation shots by step; the fit keeps the step with the lowest."""
    figure = _figure(2.8)
    axes: Axes = figure.subplots()
    steps, values = zip(*target.history, strict=True)
    best = min(range(len(values)), key=values.__getitem__)
    axes.plot(steps, values, color=BLUE, marker="o", markersize=4)
    axes.plot(steps[best], values[best], color=RED, marker="o", markersize=7, fillstyle="none")
    if min(values) > 0.0:
        axes.set_yscale("log")
    axes.set(
        xlabel="steps", ylabel="objective on the\nvalidation shots", title=f"{target.target}: ringed, the one kept"
    )
    return figure


def _figure(height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: "Figure", path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Software": None})


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
