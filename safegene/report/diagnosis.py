"""A target's diagnosis as a table, pictures and sentences, from what `calibrate` left in ``coefficients.json``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safegene.errors import ArtifactError, FormatError, ParamsError, StaleArtifact
from safegene.report.status import read_state
from safegene.text import percent, visible
from safegene.workspace.layout import Workspace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

FORECASTS = {
    "reachable": "Reachable: nothing measured so far says that the repair falls short.",
    "doubtful": "Doubtful: the repair may not pass.",
}
NAMES = {
    "safety_after": "loss on safety replies",
    "benign_after": "loss on benign replies",
    "mismatches": "digests of another family",
    "unrelated": "change of the weights",
    "task_change": "change of the weights",
    "cosine": "cosine with the vector",
    "outside": "vector not used",
    "unreached": "change out of reach",
    "kept": "discrepancy kept",
    "surrogates": "degraded models",
    "shots_fit": "safety shots fitted",
    "fall": "fall at the end of the fit",
}
AT_LEAST = ("kept", "surrogates", "shots_fit")
SHARES = ("unrelated", "task_change", "outside", "unreached", "kept", "fall")
BLUE, GREY, RED = "#2a6f97", "#d0d7de", "#b3261e"


@dataclass(frozen=True)
class TargetDiagnosis:
    """A calibrated target.

    Attributes:
        target: its name.
        diagnosis: what `safegene.repair.diagnosis` found.
        history: (step, objective on the validation shots) of the fit.
    """

    target: str
    diagnosis: Mapping[str, Any]
    history: Sequence[tuple[float, float]]


def read_diagnosis(workspace: Workspace, target: str) -> TargetDiagnosis:
    """What calibrating a target found, its artefact verified and made from the present others.

    Raises:
        ParamsError: there is no such target.
        ArtifactError: it is not calibrated yet, or was by a safegene that made no diagnosis.
        StaleArtifact: its candidate is altered, or was made from something that has changed since.
    """
    known = workspace.targets.targets
    if target not in known:
        raise ParamsError(
            f"expected one of the targets {sorted(known)}, got {target!r}, in {workspace.targets_file}",
            remedy="add it with `safegene target add NAME SOURCE --task TASK`",
        )
    (state,) = read_state(workspace, targets=[target], live=lambda _: None).targets
    candidate, again = state.artefacts["candidate"], f"run `safegene run {target}`"
    if candidate.problem:
        raise StaleArtifact(candidate.problem, remedy=again)
    if candidate.manifest is None:
        raise ArtifactError(f"expected a calibrated target, got none of {target} in {candidate.path}", remedy=again)
    payload = candidate.payload or {}
    if not isinstance(payload.get("diagnosis"), Mapping):
        raise ArtifactError(
            f"expected a diagnosis in {candidate.path / 'coefficients.json'}, got none: an older safegene made it",
            remedy=f"calibrate it again: `safegene calibrate {target}`",
        )
    try:
        history = [(float(step), float(value)) for step, value in payload["history"] if value is not None]
        return TargetDiagnosis(target, payload["diagnosis"], history)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"expected steps and numbers as history, got {error!r}, in {candidate.path}") from None


def sentences(diagnosis: object) -> tuple[str, ...]:
    """The forecast and every finding as sentences; none where there is no diagnosis."""
    if not isinstance(diagnosis, Mapping) or diagnosis.get("outlook") not in FORECASTS:
        return ()
    found = [one for one in diagnosis.get("findings") or () if isinstance(one, Mapping)]
    head = f"Forecast before the gate: {FORECASTS[diagnosis['outlook']]}"
    return (head, *(f"{_capital(str(one.get('words')))}. Try: {one.get('remedy')}." for one in found))


def headline(found: TargetDiagnosis) -> str:
    """The forecast in one line."""
    expected = FORECASTS[found.diagnosis["outlook"]]
    return f"{found.target}: {expected} A forecast from the validation shots; the gate decides."


def table(found: TargetDiagnosis) -> "Table":
    """Findings first, each with its limit and a remedy; then what was measured and is within its limit."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "measured", "limit", "finding"):
        made.add_column(name, justify="right" if name in ("measured", "limit") else "left", no_wrap=name != "finding")
    beyond, measured, limits = (found.diagnosis[key] for key in ("findings", "measured", "limits"))
    for one in beyond:
        what, tone = one["what"], "red" if one["kind"] == "symptom" else "yellow"
        words = f"{escape(visible(one['words']))}; try: {escape(visible(one['remedy']))}"
        made.add_row(f"[{tone}]{NAMES[what]}[/]", number(what, one["measured"]), limit(what, one["limit"]), words)
    named = {NAMES[one["what"]] for one in beyond}
    for what, name in NAMES.items():
        if what in measured and what in limits and name not in named:
            made.add_row(name, number(what, measured[what]), limit(what, limits[what]), "[green]no finding[/]")
    return made


def limit(what: str, value: float) -> str:
    """A limit as text, with the side of it that is well."""
    return f"{'at least' if what in AT_LEAST else 'below' if what == 'cosine' else 'at most'} {number(what, value)}"


def number(what: str, value: float) -> str:
    """A measurement as text: shares in percent, counts whole."""
    if what in SHARES:
        return percent(value)
    return f"{value:d}" if isinstance(value, int) else f"{value:.3f}"


def draw(found: TargetDiagnosis, folder: Path) -> tuple[Path, ...]:
    """``layers.png``, and ``history.png`` where something was fitted; no clock in them: equal input, equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "layers.png"]
    _save(_layers(found), paths[0])
    if len(found.history) > 1:
        paths.append(folder / "history.png")
        _save(_history(found), paths[1])
    else:
        (folder / "history.png").unlink(missing_ok=True)
    return tuple(paths)


def _layers(found: TargetDiagnosis) -> "Figure":
    """Per layer: what fine-tuning changed, where the vector lies and how much of it is used, and the coefficients."""
    layers = found.diagnosis["layers"]
    places = [int(name) for name in layers]
    figure = _figure(6.2)
    panels: Sequence[Axes] = figure.subplots(3, 1, sharex=True)
    panels[0].bar(places, [one["task_change"] for one in layers.values()], color=BLUE)
    panels[0].axhline(found.diagnosis["limits"]["task_change"], color=RED, linestyle="--", linewidth=1.0)
    panels[0].set(ylabel="change of\nthe weights", title=f"{found.target}: limit dashed, what is not used grey")
    panels[1].bar(places, [one["vector"] for one in layers.values()], color=GREY)
    panels[1].bar(places, [one["used"] for one in layers.values()], color=BLUE)
    panels[1].set(ylabel="share of the\nvector's energy")
    panels[2].bar(places, [one["coefficients"] for one in layers.values()], color=BLUE)
    panels[2].set(ylabel="mean size of\ncoefficients", xlabel="layer")
    if len(places) <= 24:
        panels[2].set_xticks(places)
    return figure


def _history(found: TargetDiagnosis) -> "Figure":
    """The objective on the validation shots, which the fit kept the least of."""
    figure = _figure(2.8)
    axes: Axes = figure.subplots()
    steps, values = zip(*found.history, strict=True)
    best = min(range(len(values)), key=values.__getitem__)
    axes.plot(steps, values, color=BLUE, marker="o", markersize=4)
    axes.plot(steps[best], values[best], color=RED, marker="o", markersize=7, fillstyle="none")
    if min(values) > 0.0:
        axes.set_yscale("log")
    axes.set(xlabel="steps", ylabel="objective on the\nvalidation shots", title=f"{found.target}: the one kept ringed")
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
