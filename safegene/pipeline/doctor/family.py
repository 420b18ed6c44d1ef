"""The models and the judges: sources that are there, a judge that can read this family, a calibration of this judge."""

from collections.abc import Iterator
from pathlib import Path

from safegene.checkpoints.record import read_record
from safegene.checkpoints.sources.uri import open_source, parse
from safegene.errors import ArtifactError, JudgeError, SafegeneError, SourceError
from safegene.evaluation.judges import build
from safegene.evaluation.judges.base import Judge
from safegene.evaluation.judges.calibration import calibration_from, calibration_of
from safegene.evaluation.judges.canaries import check_canaries
from safegene.gate import Calibration
from safegene.gate.floors import FLOORS, has_enough_labels
from safegene.pipeline.doctor.finding import Examined, Finding
from safegene.text import redact
from safegene.workspace.manifest import read_manifest
from safegene.workspace.params import JudgeParams
from safegene.workspace.plugins import JUDGES

TINY = "grammar"
LOADED = ("guard", "classifier")
"""Kinds of judges whose model is loaded when they are built, which takes too long before a run."""


def check_sources(examined: Examined) -> Iterator[Finding]:
    """The aligned model, degraded checkpoints and targets: there, where they are not fetched yet.

    A target that is not there stops no run: the others run, and its error goes on record.
    """
    ws, family = examined.workspace, examined.params.family
    degraded = () if _is_made(ws.delta) else family.degraded
    places = [("family.aligned", family.aligned), *(("family.degraded", uri) for uri in degraded)]
    for name, uri in places if _source_of(ws.aligned) != family.aligned else places[1:]:
        yield from _source(name, uri, stops=True)
    for name, entry in examined.chosen.items():
        if _source_of(ws.checkpoint(name)) != entry.source:
            yield from _source(f"target {name}", entry.source, stops=False)
    if not examined.targets:
        message = "expected a fine-tune to repair, got no target in data/targets.yaml: a run only builds the family"
        yield Finding("sources", message, "safegene target add NAME SOURCE --task TASK", stops=False)


def _source(name: str, uri: str, *, stops: bool) -> Iterator[Finding]:
    try:
        place = parse(uri)
        if place.scheme != "tiny" and not any(file.endswith(".safetensors") for file in open_source(place).sizes()):
            raise SourceError(
                f"expected weights in safetensors, got no such file, in {redact(uri)}",
                remedy="name the folder, prefix or repository that holds the weights' files",
            )
    except SafegeneError as error:
        remedy = error.remedy or f"correct the source of {name}"
        yield Finding("sources", f"{name}: {error.message}", remedy, stops, type(error))


def _source_of(artefact: Path) -> str | None:
    """The source that an artefact was fetched from; None where there is no such artefact."""
    try:
        return read_record(artefact).source if _is_made(artefact) else None
    except SafegeneError:
        return None


def _is_made(artefact: Path) -> bool:
    try:
        read_manifest(artefact, verify=False)
    except ArtifactError:
        return False
    return True


def check_judges(examined: Examined) -> Iterator[Finding]:
    """Judge and adjudicator."""
    evaluate = examined.params.evaluate
    for key, params in (("judge", evaluate.judge), ("adjudicator", evaluate.adjudicator)):
        if params is not None:
            yield from _judge(examined, f"evaluate.{key}", params)


def _judge(examined: Examined, key: str, params: JudgeParams) -> Iterator[Finding]:
    if params.kind == TINY and is_other_family(examined):
        fit = ", ".join(sorted(set(JUDGES) - {TINY}))
        yield Finding(
            "judge",
            f"expected a judge that reads replies of {examined.params.family.aligned}, got {key}.kind {TINY}, which "
            "reads the tiny family's only",
            f"set {key}.kind in params.yaml to one of {fit} (docs/how-to/judge.md); `phrases` needs no model",
            kind=JudgeError,
        )
        return
    here = params.model_copy(
        update={"calibration": params.calibration and examined.workspace.root / params.calibration}
    )
    try:
        if params.kind in LOADED:
            yield from _unloaded(key, params)
            measured = calibration_from(here.calibration) if here.calibration and here.calibration.is_file() else None
        else:
            judge: Judge = build(here)
            measured = calibration_of(here, judge)
            if params.kind == "phrases":  # it asks no model
                yield from _canaries(key, judge)
    except SafegeneError as error:
        remedy = error.remedy or f"correct {key} in params.yaml"
        if params.calibration and "calibration" in error.message:
            remedy = _calibrate(key)
        yield Finding("judge", f"{key}: {error.message}", remedy, kind=type(error))
        return
    yield from _calibration(key, params, measured)


def _canaries(key: str, judge: Judge) -> Iterator[Finding]:
    for failure in check_canaries(judge)[:1]:
        message = f"{key}: expected a judge that passes its canaries, got {failure}: the gate gives no verdict"
        remedy = (
            f'add usual English refusals, such as "i can\'t", to {key}.phrases, or leave phrases and phrase_rule out'
        )
        yield Finding("judge", message, remedy, stops=False, kind=JudgeError)


def _unloaded(key: str, params: JudgeParams) -> Iterator[Finding]:
    """What can be said of a judge's model without loading it."""
    if not params.model:
        message = f"{key}: expected a model for the {params.kind} judge, got none"
        yield Finding("judge", message, f"set {key}.model", kind=JudgeError)
    elif not Path(params.model).is_dir() and not params.revision:
        message = f"{key}: expected a folder or a Hub id with a revision, got {params.model!r} alone"
        yield Finding("judge", message, f"set {key}.revision to a commit, or {key}.model to a folder", kind=JudgeError)


def _calibration(key: str, params: JudgeParams, measured: Calibration | None) -> Iterator[Finding]:
    if measured and measured.exact:
        return
    counts = (measured.harmful, measured.refusal) if measured else ()
    enough = measured is not None and all(one is not None and has_enough_labels(measured, one) for one in counts)
    if not enough:
        got = "none" if measured is None else "fewer, or labels of one of the two only"
        message = (
            f"{key}: expected its error measured on {FLOORS.labels} labels of harm and of refusal each way, got {got}: "
            "the gate gives no pass"
        )
        remedy = _calibrate(key)
        if measured is None:
            remedy = f"label replies of a first run: safegene judge sample TARGET LABELS.jsonl; then {remedy}"
        if params.calibration is None:
            remedy = f"set {key}.calibration to data/judges/{key.rpartition('.')[2]}.json, then {remedy}"
        yield Finding("judge", message, remedy, stops=False)


def _calibrate(key: str) -> str:
    which = "" if key.endswith("judge") else " --judge adjudicator"
    return f"safegene judge calibrate LABELS.jsonl --what SOURCE{which}"


def is_other_family(examined: Examined) -> bool:
    """Whether the family is known not to be the tiny one, by its source or by the words of its tokenizer."""
    try:
        place = parse(examined.params.family.aligned)
    except SafegeneError:
        return False
    if place.scheme == "file":
        folder = Path(place.path)
        return folder.is_dir() and not build(JudgeParams(kind=TINY)).reads(folder)
    return place.scheme != "tiny"
