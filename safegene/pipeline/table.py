"""The table of the pipeline's stages, in order.

A stage's name is the CLI command, the DVC stage, the Prefect task and the section of ``params.yaml``. Paths are
relative to the workspace; ``{target}`` and ``{task}`` are replaced by the target's name and its task.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from safegene.errors import ParamsError
from safegene.pipeline.views import coefficients_picture, metrics, rates_picture
from safegene.workspace.layout import MARKER, Workspace
from safegene.workspace.manifest import Manifest
from safegene.workspace.params import Params

View = Callable[[Path], str]
"""The folder of an artefact -> the text of a file that people look at."""


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: see the module.
        run: writes the artefact, given the workspace and the target's name ("" for a stage of the family).
        inputs: files and artefacts that it reads.
        output: the artefact that it writes; "" for none.
        params: keys of ``params.yaml`` that it reads; ``data/targets.yaml:KEY`` for keys of that file.
        per_target: whether it runs once for each target.
        tracked: whether DVC runs it.
        metrics: file outside of the output, kept in Git, that ``dvc metrics`` reads, and what makes it of the output.
        plots: the same for ``dvc plots``.
        copies: file of the output -> its copy outside, as ``dvc.yaml`` of earlier versions names it.
        sealed: whether a promotion needs to know that a holder of the cache's key made the output.
        vector: "made" for a stage that makes the safety vector, "published" for one that fetches it (`pipeline_of`).
        others: further artefacts that it writes.
        credentials: what it may need: "all" for what copies from a source, "judge" for the keys of judges and servers.
    """

    name: str
    run: Callable[[Workspace, str], Manifest | None]
    inputs: tuple[str, ...]
    output: str
    params: tuple[str, ...]
    per_target: bool = False
    tracked: bool = True
    metrics: tuple[tuple[str, View], ...] = ()
    plots: tuple[tuple[str, View], ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    sealed: bool = False
    vector: Literal["", "made", "published"] = ""
    others: tuple[str, ...] = ()
    credentials: Literal["", "judge", "all"] = ""

    def address(self, target: str = "") -> str:
        """The stage's name in DVC: ``compress``, or ``calibrate@TARGET`` for one target."""
        return f"{self.name}@{target}" if self.per_target else self.name


def _validate(ws: Workspace, target: str) -> Manifest:
    from safegene.pipeline.stages.validate import validate

    params = ws.params
    made = params.family.vector is None
    named = params.degrade.surrogates.values() if made and not params.family.degraded else ()
    pools = {pool for surrogate in named for pool in surrogate.pools}
    return validate(
        prompts=ws.prompts, tasks=ws.tasks, out=ws.validation, params=params.validate_, pools=pools, degrades=made
    )


def _fetch(ws: Workspace, target: str) -> Manifest:
    from safegene.pipeline.stages.fetch import fetch

    params = ws.params
    pin = ws.targets.aligned
    return fetch(params.family.aligned, out=ws.aligned, fingerprint=pin, params=params.fetch)


def _degrade(ws: Workspace, target: str) -> Manifest:
    from safegene.pipeline.stages.degrade import degrade

    params = ws.params
    return degrade(
        judge=params.evaluate.judge,
        aligned=ws.aligned,
        prompts=ws.prompts,
        out=ws.degraded,
        checkpoints=params.family.degraded,
        limits=params.fetch,
        dtype=params.family.dtype,
        params=params.degrade,
    )


def _extract(ws: Workspace, target: str) -> Manifest:
    from safegene.pipeline.stages.extract import extract

    params = ws.params
    return extract(
        aligned=ws.aligned,
        degraded=ws.degraded,
        prompts=ws.prompts,
        out=ws.delta,
        checkpoints=params.family.degraded,
        pins=ws.targets.degraded,
        limits=params.fetch,
        dtype=params.family.dtype,
        params=params.extract,
    )


def _compress(ws: Workspace, target: str) -> Manifest:
    from safegene.pipeline.stages.compress import compress

    return compress(delta=ws.delta, out=ws.vector, params=ws.params.compress)


def _select(ws: Workspace, target: str) -> Manifest:
    from safegene.pipeline.stages.select import select

    return select(
        aligned=ws.aligned,
        degraded=ws.degraded,
        vector=ws.vector,
        prompts=ws.prompts,
        out=ws.selection,
        limits=ws.params.fetch,
        dtype=ws.params.family.dtype,
        params=ws.params.select,
    )


def _fetch_vector(ws: Workspace, target: str) -> Manifest:
    from safegene.pipeline.stages.fetch_vector import fetch_vector

    family = ws.params.family
    if family.vector is None or family.publisher is None:
        raise ParamsError(
            f"expected family.vector and family.publisher for the stage fetch-vector, got none, in {ws.root / MARKER}",
            remedy="name a published vector there; without one the stages degrade to select make it: `safegene run`",
        )
    return fetch_vector(
        family.vector,
        publisher=family.publisher,
        aligned=ws.aligned,
        prompts=ws.prompts,
        vector=ws.vector,
        selection=ws.selection,
        out=ws.published,
        pin=ws.targets.vector,
    )


def _fetch_target(ws: Workspace, target: str) -> Manifest:
    from safegene.pipeline.stages.fetch import fetch

    entry = ws.targets.targets[target]
    return fetch(
        entry.source,
        out=ws.checkpoint(target),
        family=ws.aligned,
        fingerprint=entry.fingerprint,
        params=ws.params.fetch,
        entry={"name": target, "task": entry.task},
    )


def _calibrate(ws: Workspace, target: str) -> Manifest:
    from safegene.ledger.evidence import require_entry
    from safegene.pipeline.stages.calibrate import calibrate

    require_entry(ws, target)
    return calibrate(
        vector=ws.vector,
        selection=ws.selection,
        degraded=None if ws.params.family.vector else ws.degraded,
        aligned=ws.aligned,
        target=ws.checkpoint(target),
        prompts=ws.prompts,
        task=_task(ws, target),
        out=ws.candidate(target),
        limits=ws.params.fetch,
        dtype=ws.params.family.dtype,
        params=ws.params.calibrate,
        judge=ws.params.evaluate.judge,
    )


def _evaluate(ws: Workspace, target: str) -> Manifest:
    from safegene.ledger.evidence import require_entry
    from safegene.pipeline.stages.evaluate import evaluate

    require_entry(ws, target)
    params = ws.params
    return evaluate(
        prompts=ws.prompts,
        task=_task(ws, target),
        aligned=ws.aligned,
        target=ws.checkpoint(target),
        candidate=ws.candidate(target),
        validation=ws.validation,
        incumbent=ws.incumbent(target),
        out=ws.judgements(target),
        limits=params.fetch,
        dtype=params.family.dtype,
        params=params.evaluate,
        gate=params.gate,
    )


def _gate(ws: Workspace, target: str) -> Manifest:
    from safegene.ledger.evidence import require_entry
    from safegene.pipeline.stages.gate import decide

    require_entry(ws, target)
    return decide(ws.candidate(target), ws.judgements(target), out=ws.verdict(target), params=ws.params.gate)


def _promote(ws: Workspace, target: str) -> None:
    from safegene.pipeline.stages.promote import promote

    promote(ws, target)


def _task(ws: Workspace, target: str) -> Path:
    return ws.tasks / f"{ws.targets.targets[target].task}.jsonl"


_ALIGNED, _TARGET = "data/family/aligned", "data/targets/{target}"
_DEGRADE, _SAFETY, _GATE, _POOL = (f"data/prompts/{name}.jsonl" for name in ("degrade", "safety", "gate", "pool"))
_TASK = "data/tasks/{task}.jsonl"
_RECEIPTS = "data/validation/receipts"  # one for each set, so that a set that is added changes no other's
_JUDGES, _DEGRADED = "data/judges", "data/family/degraded"

PIPELINE: tuple[Stage, ...] = (
    Stage(
        "validate",
        _validate,
        ("data/prompts", "data/tasks"),
        "data/validation",
        ("validate", "degrade", "family.degraded"),
        sealed=True,
    ),
    Stage(
        "fetch",
        _fetch,
        (),
        _ALIGNED,
        ("family.aligned", "fetch", "data/targets.yaml:aligned"),
        sealed=True,
        credentials="all",
    ),
    Stage(
        "degrade",
        _degrade,
        (_ALIGNED, _DEGRADE, _SAFETY, f"{_RECEIPTS}/degrade.json", f"{_RECEIPTS}/safety.json"),
        _DEGRADED,
        ("family.degraded", "family.dtype", "degrade", "evaluate.judge"),
        vector="made",
        credentials="judge",
    ),
    Stage(
        "extract",
        _extract,
        (_ALIGNED, _DEGRADED, _SAFETY, f"{_RECEIPTS}/safety.json"),
        "data/family/delta",
        ("family.degraded", "family.dtype", "fetch", "extract", "data/targets.yaml:degraded"),
        vector="made",
    ),
    Stage("compress", _compress, ("data/family/delta",), "data/family/vector", ("compress",), vector="made"),
    Stage(
        "select",
        _select,
        (_ALIGNED, _DEGRADED, "data/family/vector", _SAFETY, f"{_RECEIPTS}/safety.json"),
        "data/family/selection",
        ("family.dtype", "select"),
        vector="made",
    ),
    Stage(
        "fetch-vector",
        _fetch_vector,
        (_ALIGNED, _GATE),
        "data/family/published",
        ("family.vector", "family.publisher", "data/targets.yaml:vector"),
        sealed=True,
        vector="published",
        credentials="all",
        others=("data/family/vector", "data/family/selection"),
    ),
    Stage(
        "fetch-target",
        _fetch_target,
        (_ALIGNED,),
        f"{_TARGET}/checkpoint",
        ("fetch", "data/targets.yaml:targets.{target}"),
        per_target=True,
        sealed=True,
        credentials="all",
    ),
    Stage(
        "calibrate",
        _calibrate,
        (
            _ALIGNED,
            "data/family/vector",
            "data/family/selection",
            _DEGRADED,
            f"{_TARGET}/checkpoint",
            _SAFETY,
            _POOL,
            _TASK,
            f"{_RECEIPTS}/safety.json",
            f"{_RECEIPTS}/pool.json",
            f"{_RECEIPTS}/task-{{task}}.json",
        ),
        f"{_TARGET}/candidate",
        ("family.dtype", "calibrate", "evaluate.judge"),
        per_target=True,
        credentials="judge",
        plots=(("data/plots/coefficients/{target}.svg", coefficients_picture),),
        copies=(("coefficients.csv", "data/plots/coefficients/{target}.csv"),),
    ),
    Stage(
        "evaluate",
        _evaluate,
        (
            _ALIGNED,
            f"{_TARGET}/checkpoint",
            f"{_TARGET}/candidate",
            f"{_TARGET}/incumbent.json",
            _GATE,
            _TASK,
            _JUDGES,
            f"{_RECEIPTS}/gate.json",
            f"{_RECEIPTS}/task-{{task}}.json",
        ),
        f"{_TARGET}/judgements",
        ("family.dtype", "evaluate", "gate"),
        per_target=True,
        sealed=True,
        credentials="judge",
    ),
    Stage(
        "gate",
        _gate,
        (f"{_TARGET}/candidate", f"{_TARGET}/judgements"),
        f"{_TARGET}/verdict",
        ("gate",),
        per_target=True,
        metrics=(("data/metrics/{target}.json", metrics),),
        plots=(("data/plots/rates/{target}.svg", rates_picture),),
        copies=(("rates.csv", "data/plots/rates/{target}.csv"),),
    ),
    Stage("promote", _promote, (f"{_TARGET}/verdict",), "", ("promote",), per_target=True, tracked=False),
)


def pipeline_of(params: Params) -> tuple[Stage, ...]:
    """The stages of a workspace: those that make the vector, or the one that fetches it where ``family.vector`` is set.

    Where it is fetched, there are no degraded copies that a stage could read.
    """
    if params.family.vector is None:
        return tuple(stage for stage in PIPELINE if stage.vector != "published")
    kept = (stage for stage in PIPELINE if stage.vector != "made")
    return tuple(replace(one, inputs=tuple(name for name in one.inputs if name != _DEGRADED)) for one in kept)


def stage_named(name: str) -> Stage:
    """The stage of that name.

    Raises:
        ParamsError: there is none.
    """
    for stage in PIPELINE:
        if stage.name == name:
            return stage
    raise ParamsError(f"expected one of the stages {[s.name for s in PIPELINE]}, got {name!r}")
