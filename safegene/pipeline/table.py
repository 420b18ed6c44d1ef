"""The one ordered table of stages, and the two ways to run one: directly, or through DVC.

A stage's name is the CLI verb, the DVC stage, the Prefect task and the section of ``params.yaml``. Paths are relative
to the workspace; ``{target}`` and ``{task}`` stand for the target's name and its task.
"""

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safegene.errors import ParamsError, SafegeneError
from safegene.workspace.costs import note_cost
from safegene.workspace.digest import strict_json
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import Manifest


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: see the module.
        run: makes the artefact, given the workspace and the target's name ("" for a family stage).
        inputs: files and artefacts it reads.
        output: the artefact it writes.
        params: keys of ``params.yaml`` that influence it; ``data/targets.yaml:KEY`` for the machines' file.
        per_target: whether it runs once per target.
        tracked: whether DVC runs it.
        metrics: file of the output -> copy outside it that ``dvc metrics diff`` reads, kept in Git.
        plots: the same for ``dvc plots``.
    """

    name: str
    run: Callable[[Workspace, str], Manifest | None]
    inputs: tuple[str, ...]
    output: str
    params: tuple[str, ...]
    per_target: bool = False
    tracked: bool = True
    metrics: tuple[tuple[str, str], ...] = ()
    plots: tuple[tuple[str, str], ...] = ()

    def address(self, target: str = "") -> str:
        """The stage's name in DVC: ``compress``, or ``calibrate@TARGET``."""
        return f"{self.name}@{target}" if self.per_target else self.name


def _validate(ws: Workspace, target: str) -> Manifest:
    from safegene.pipeline.stages.validate import validate

    return validate(ws.params.validate_, prompts=ws.prompts, tasks=ws.tasks, out=ws.validation)


def _fetch(ws: Workspace, target: str) -> Manifest:
    from safegene.pipeline.stages.fetch import fetch

    params = ws.params
    pin = ws.targets.aligned
    return fetch(params.fetch, source=params.family.aligned, fingerprint=pin, family=None, out=ws.aligned)


def _degrade(ws: Workspace, target: str) -> Manifest:
    from safegene.pipeline.stages.degrade import degrade

    params = ws.params
    return degrade(
        params.degrade,
        judge=params.evaluate.judge,
        aligned=ws.aligned,
        prompts=ws.prompts,
        out=ws.degraded,
        checkpoints=params.family.degraded,
        fetch=params.fetch,
    )


def _extract(ws: Workspace, target: str) -> Manifest:
    from safegene.pipeline.stages.extract import extract

    params = ws.params
    return extract(
        params.extract,
        aligned=ws.aligned,
        degraded=ws.degraded,
        prompts=ws.prompts,
        out=ws.delta,
        checkpoints=params.family.degraded,
        pins=ws.targets.degraded,
        fetch=params.fetch,
    )


def _compress(ws: Workspace, target: str) -> Manifest:
    from safegene.pipeline.stages.compress import compress

    return compress(ws.params.compress, delta=ws.delta, out=ws.vector)


def _select(ws: Workspace, target: str) -> Manifest:
    from safegene.pipeline.stages.select import select

    return select(
        ws.params.select,
        aligned=ws.aligned,
        degraded=ws.degraded,
        vector=ws.vector,
        prompts=ws.prompts,
        out=ws.selection,
        fetch=ws.params.fetch,
    )


def _fetch_target(ws: Workspace, target: str) -> Manifest:
    from safegene.pipeline.stages.fetch import fetch

    entry = ws.targets.targets[target]
    return fetch(
        ws.params.fetch,
        source=entry.source,
        fingerprint=entry.fingerprint,
        family=ws.aligned,
        out=ws.checkpoint(target),
    )


def _calibrate(ws: Workspace, target: str) -> Manifest:
    from safegene.pipeline.stages.calibrate import calibrate

    return calibrate(
        ws.params.calibrate,
        vector=ws.vector,
        selection=ws.selection,
        degraded=ws.degraded,
        aligned=ws.aligned,
        target=ws.checkpoint(target),
        prompts=ws.prompts,
        task=_task(ws, target),
        out=ws.candidate(target),
        fetch=ws.params.fetch,
    )


def _evaluate(ws: Workspace, target: str) -> Manifest:
    from safegene.pipeline.stages.evaluate import evaluate

    params = ws.params
    return evaluate(
        params.evaluate,
        params.gate,
        prompts=ws.prompts,
        task=_task(ws, target),
        aligned=ws.aligned,
        target=ws.checkpoint(target),
        candidate=ws.candidate(target),
        validation=ws.validation,
        incumbent=ws.incumbent(target),
        out=ws.judgements(target),
        fetch=params.fetch,
        dtype=params.family.dtype,
    )


def _gate(ws: Workspace, target: str) -> Manifest:
    from safegene.pipeline.stages.gate import gate

    return gate(
        ws.params.gate, candidate=ws.candidate(target), judgements=ws.judgements(target), out=ws.verdict(target)
    )


def _promote(ws: Workspace, target: str) -> None:
    from safegene.pipeline.stages.promote import promote

    promote(ws.params.promote, workspace=ws, target=target)


def _task(ws: Workspace, target: str) -> Path:
    return ws.tasks / f"{ws.targets.targets[target].task}.jsonl"


_ALIGNED, _TARGET = "data/family/aligned", "data/targets/{target}"
_SAFETY, _RECEIPT = "data/prompts/safety.jsonl", "data/validation/receipt.json"
_TASK = "data/tasks/{task}.jsonl"
_JUDGES = "data/judges"

PIPELINE: tuple[Stage, ...] = (
    Stage("validate", _validate, ("data/prompts", "data/tasks"), "data/validation", ("validate",)),
    Stage("fetch", _fetch, (), _ALIGNED, ("family.aligned", "fetch", "data/targets.yaml:aligned")),
    Stage(
        "degrade",
        _degrade,
        (_ALIGNED, "data/prompts/degrade.jsonl", _SAFETY, _RECEIPT),
        "data/family/degraded",
        ("family.degraded", "degrade", "evaluate.judge"),
    ),
    Stage(
        "extract",
        _extract,
        (_ALIGNED, "data/family/degraded", _SAFETY, _RECEIPT),
        "data/family/delta",
        ("family.degraded", "fetch", "extract", "data/targets.yaml:degraded"),
    ),
    Stage("compress", _compress, ("data/family/delta",), "data/family/vector", ("compress",)),
    Stage(
        "select",
        _select,
        (_ALIGNED, "data/family/degraded", "data/family/vector", _SAFETY, _RECEIPT),
        "data/family/selection",
        ("select",),
    ),
    Stage(
        "fetch-target",
        _fetch_target,
        (_ALIGNED,),
        f"{_TARGET}/checkpoint",
        ("fetch", "data/targets.yaml:targets.{target}"),
        per_target=True,
    ),
    Stage(
        "calibrate",
        _calibrate,
        (
            _ALIGNED,
            "data/family/vector",
            "data/family/selection",
            "data/family/degraded",
            f"{_TARGET}/checkpoint",
            _SAFETY,
            _TASK,
            _RECEIPT,
        ),
        f"{_TARGET}/candidate",
        ("calibrate",),
        per_target=True,
        plots=(("coefficients.csv", "data/plots/coefficients/{target}.csv"),),
    ),
    Stage(
        "evaluate",
        _evaluate,
        (
            _ALIGNED,
            f"{_TARGET}/checkpoint",
            f"{_TARGET}/candidate",
            f"{_TARGET}/incumbent.json",
            "data/prompts/gate.jsonl",
            _TASK,
            _JUDGES,
            _RECEIPT,
        ),
        f"{_TARGET}/judgements",
        ("family.dtype", "evaluate", "gate"),
        per_target=True,
    ),
    Stage(
        "gate",
        _gate,
        (f"{_TARGET}/candidate", f"{_TARGET}/judgements"),
        f"{_TARGET}/verdict",
        ("gate",),
        per_target=True,
        metrics=(("metrics.json", "data/metrics/{target}.json"),),
        plots=(("rates.csv", "data/plots/rates/{target}.csv"),),
    ),
    Stage("promote", _promote, (f"{_TARGET}/verdict",), "", ("promote",), per_target=True, tracked=False),
)

FAMILY = tuple(stage for stage in PIPELINE if not stage.per_target)
PER_TARGET = tuple(stage for stage in PIPELINE if stage.per_target)


def stage_named(name: str) -> Stage:
    """The stage of that name.

    Raises:
        ParamsError: there is none.
    """
    for stage in PIPELINE:
        if stage.name == name:
            return stage
    raise ParamsError(f"expected one of the stages {[s.name for s in PIPELINE]}, got {name!r}")


def run_stage(stage: Stage, ws: Workspace, target: str = "") -> Manifest | None:
    """Run a stage now, whether or not it must, and give its receipt (None for ``promote``).

    Raises:
        ParamsError: a per-target stage without a known target, or a family stage with one.
        SafegeneError: the stage's own.
    """
    if stage.per_target and target not in ws.targets.targets:
        known = sorted(ws.targets.targets)
        raise ParamsError(
            f"expected one of the targets {known} of {ws.targets_file}, got {target!r}",
            remedy="add it with `safegene target add NAME SOURCE --task TASK`",
        )
    if target and not stage.per_target:
        raise ParamsError(f"expected no target for the family's stage {stage.name!r}, got {target!r}")
    start = time.process_time()
    manifest = stage.run(ws, target)
    if manifest is not None:
        note_cost(ws.root, manifest.digest, stage.address(target), time.process_time() - start)
    for name, copy in (*stage.metrics, *stage.plots):
        view = ws.root / copy.format(target=target)
        view.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ws.root / stage.output.format(target=target) / name, view)
    return manifest


def reproduce(stage: Stage, ws: Workspace, target: str = "") -> bool:
    """Bring a stage up to date through DVC (``dvc repro --single-item``); whether it had to run.

    DVC starts ``safegene STAGE [TARGET]`` as a child, which dies with this process. It is called in this process since
    its command line costs a second a stage, most of it imports.

    Raises:
        SafegeneError: the stage failed; its own sentence, if it left one.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.WARNING)
    left = error_file(ws)
    left.unlink(missing_ok=True)
    with chdir(ws.root), _child_environment(left), Repo(str(ws.root)) as repo:
        try:
            ran = repo.reproduce(targets=[stage.address(target)], single_item=True)
        except DvcException as error:
            raise _stage_error(stage, target, left, error) from error
    return bool(ran)


def error_file(ws: Workspace) -> Path:
    """Where a stage run as a child leaves its error for the flow."""
    folder = ws.root / ".safegene"
    folder.mkdir(exist_ok=True)
    return folder / "error.json"


@contextmanager
def _child_environment(left: Path) -> Iterator[None]:
    """Our own ``safegene`` first on the path, the die-with-parent flag, and where to leave an error."""
    before = dict(os.environ)
    bin_folder = str(Path(sys.executable).parent)
    os.environ.update(
        PATH=f"{bin_folder}{os.pathsep}{before.get('PATH', '')}",
        SHELL="/bin/sh",
        SAFEGENE_DIE_WITH_PARENT=str(os.getpid()),
        SAFEGENE_ERROR_FILE=str(left),
        DVC_NO_ANALYTICS="1",
    )
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _stage_error(stage: Stage, target: str, left: Path, error: Exception) -> SafegeneError:
    where = f"stage {stage.address(target)}"
    if not left.is_file():
        cause = error.__cause__ or error
        return SafegeneError(f"{where} failed: {error} ({cause})", remedy="see the messages above; rerun with --debug")
    raw: dict[str, Any] = strict_json(left.read_bytes(), where=str(left))
    failed = SafegeneError(f"{where}: {raw['error']}: {raw['message']}", remedy=raw["remedy"])
    failed.exit_code = int(raw["exit_code"])
    return failed


def git_commit(root: Path) -> str:
    """The commit that the workspace stands at, or "" where there is none yet."""
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
