"""What a run would do now, without doing it: the stages that would run, and its outcome where none must."""

import logging
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import dataclass

from safegene.errors import SafegeneError
from safegene.pipeline.table import Stage, pipeline_of
from safegene.workspace.layout import Workspace


@dataclass(frozen=True)
class ForeseenRun:
    """What a run of one target would do.

    Attributes:
        target: its name.
        stages: stages that would run, as DVC names them, in order.
        outcome: of the promotion; ``unknown`` where a stage must run first.
        message: one sentence.
    """

    target: str
    stages: tuple[str, ...]
    outcome: str
    message: str


def foresee(ws: Workspace, targets: Sequence[str]) -> tuple[ForeseenRun, ...]:
    """What a run of these targets would do; nothing is written.

    Raises:
        ParamsError: ``params.yaml`` or ``data/targets.yaml`` is wrong.
        SafegeneError: DVC cannot read the workspace.
    """
    stale = stages_to_run(ws, targets)
    return tuple(_foreseen(ws, name, stale[name]) for name in targets)


def stages_to_run(ws: Workspace, targets: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Target -> the stages that would run for it, the family's among them, in order; "" -> the family's alone.

    Raises:
        SafegeneError: DVC cannot read the workspace.
    """
    changed = _changed(ws)
    family: list[str] = []
    outputs: set[str] = set()
    stages = pipeline_of(ws.params)
    for stage in (stage for stage in stages if not stage.per_target):
        _follow(stage, "", "", changed, outputs, family)
    found = {"": tuple(family)}
    for name in targets:
        own, made = list(family), set(outputs)
        task = ws.targets.targets[name].task
        for stage in (stage for stage in stages if stage.per_target and stage.tracked):
            _follow(stage, name, task, changed, made, own)
        found[name] = tuple(own)
    return found


def _follow(stage: Stage, target: str, task: str, changed: set[str], outputs: set[str], stale: list[str]) -> None:
    """Note a stage that has changed, or that reads the output of one that would run."""
    inputs = [path.format(target=target, task=task) for path in stage.inputs]
    reads = any(path == out or path.startswith(f"{out}/") for path in inputs for out in outputs)
    if reads or stage.address(target) in changed:
        stale.append(stage.address(target))
        outputs |= {stage.output.format(target=target), *stage.others}


def _changed(ws: Workspace) -> set[str]:
    """Stages that DVC finds changed, as it names them."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.WARNING)
    try:
        with chdir(ws.root), Repo(str(ws.root)) as repo:
            return set(repo.status())
    except DvcException as error:
        raise SafegeneError(f"expected DVC to read the workspace, got {error}, in {ws.root}") from None


def _foreseen(ws: Workspace, target: str, stale: tuple[str, ...]) -> ForeseenRun:
    from safegene.pipeline.stages.promote import promote

    if stale:
        said = f"{target}: not decided yet; up to {len(stale)} stages would run first: {', '.join(stale)}"
        return ForeseenRun(target, stale, "unknown", said)
    try:
        result = promote(ws, target, dry_run=True)
    except SafegeneError as error:
        again = f"{target}: not decided yet; its stages would run again: {error.message}"
        return ForeseenRun(target, (), "unknown", again)
    if result.outcome == "error":  # measured against something else than what is live: a run evaluates it again
        return ForeseenRun(target, (f"evaluate@{target}", f"gate@{target}"), "unknown", result.message)
    return ForeseenRun(target, (), result.outcome, result.message)
