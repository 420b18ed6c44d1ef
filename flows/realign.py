"""Flow ``realign``: fetch -> calibrate -> evaluate -> gate -> promote for each target, on an up-to-date family."""

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, cast

from prefect import flow
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.runtime import flow_run
from prefect.states import Completed
from rich.markup import escape

from flows.build import build_stages
from flows.schedule import cancel_missed_runs
from flows.shown import final_state, run_name, tag_run
from flows.tasks import (
    STAGE_TASKS,
    commit,
    console,
    exclusive,
    pin_incumbent,
    promote,
    publish,
    pull,
    push,
    share,
    update,
)
from safegene.errors import SafegeneError, as_safegene_error
from safegene.pipeline.doctor import require_ready
from safegene.pipeline.watched import Following, following
from safegene.pipeline.work import working_alone
from safegene.workspace.git import head_commit
from safegene.workspace.layout import Workspace


@flow(name="realign", flow_run_name=run_name, persist_result=False)
def realign(
    root: str, targets: list[str] | None = None, trigger: str = "manual", promotes: bool = True, work: str = ""
) -> dict[str, str]:
    """Re-align targets (default: all) and promote those that pass the gate.

    An error in one target does not stop the others. Where an event names the ``work`` that it asks for, nothing runs if
    that is decided, superseded, or in another run's hands (`safegene.pipeline.watched`). Where it does not promote, it
    ends with the verdicts and the report: it needs no signing key, and neither records, commits nor pushes anything.

    Returns:
        Target -> ``pass``, ``fail`` or ``inconclusive``.

    Raises:
        ParamsError: a named target is not in ``data/targets.yaml``.
        SafegeneError: something that a run needs is not there; nothing was computed.
        SafegeneError: a stage of the family failed; or, after all targets were tried, one of them ended in an error.
    """
    ws, run_id = Workspace(Path(root).resolve()), str(flow_run.id or "")
    root = str(ws.root)
    cancel_missed_runs()
    with ExitStack() as stack:
        stack.enter_context(exclusive(root))
        followed = stack.enter_context(following(ws, targets[0], run_id, work)) if work and targets else None
        if followed and followed.refused:
            tag_run(root, targets or [])
            return cast(dict[str, str], Completed(name="Duplicate", message=followed.refused, data={}))
        update(root)
        names = _chosen(ws, targets)
        tag_run(root, names)
        pull(root, names)
        require_ready(ws, names, signs=promotes)
        build_stages(root)
        run = {"run_id": run_id, "trigger": trigger, "git_commit": head_commit(root)}
        outcomes, errors = _each(root, names, run, promotes, followed)
        said = ", ".join(f"{name} {outcome}" for name, outcome in outcomes.items()) or "no targets"
        errors += follow_up(ws, "realign", said, names, promotes)
    if errors:
        raise SafegeneError("; ".join(error.summary for error in errors), remedy=errors[0].remedy)
    return cast(dict[str, str], final_state(ws, outcomes, promotes))  # Prefect returns the state's data to the caller


def follow_up(ws: Workspace, word: str, said: str, names: list[str], keeps: bool) -> list[SafegeneError]:
    """Report, commit and push; what of it failed, each with what the run has done all the same.

    Commits are shared only when all before succeeded: a clone must find the data that a commit names.

    Args:
        ws: the workspace.
        word: what ran.
        said: what it found, in one line.
        names: the targets.
        keeps: whether anything but the report is written.
    """
    done = f"{said} (pass is live)" if keeps and word == "realign" else said
    root, errors = str(ws.root), list[SafegeneError]()
    steps: list[tuple[str, Callable[[], object]]] = [("reported", lambda: _report(root, names))]
    if keeps and ws.params.flow.commit:
        steps.append(("committed", lambda: commit(root, f"{word}: {said}")))
    if keeps and ws.params.flow.push:
        steps.append(("pushed", lambda: push(root)))
    if keeps and ws.params.flow.push_commits:
        steps.append(("shared", lambda: console.print(f"  {share(root)}", soft_wrap=True, markup=False)))
    for step, run in steps:
        if step == "shared" and errors:
            break
        try:
            run()
        except Exception as raised:
            error = as_safegene_error(raised)
            errors.append(type(error)(f"{done}, not {step}: {error.message}", remedy=error.remedy))
    return errors


def _report(root: str, names: list[str]) -> None:
    console.print(f"  report: {publish(root, names)}", soft_wrap=True)


def _chosen(ws: Workspace, targets: list[str] | None) -> list[str]:
    for name in targets or ():
        ws.require_target(name)
    return sorted(targets or ws.targets.targets)


def _each(
    root: str, names: list[str], run: dict[str, str], promotes: bool, followed: Following | None
) -> tuple[dict[str, str], list[SafegeneError]]:
    outcomes: dict[str, str] = {}
    errors: list[SafegeneError] = []
    progress: Any = create_progress_artifact(progress=0.0, key="safegene-realign", description="targets done")
    for done, name in enumerate(names, 1):
        try:
            outcomes[name] = _one(root, name, run, followed) if promotes else decide_target(root, name)
        except Exception as raised:  # one target must not stop the others
            error = as_safegene_error(raised)
            outcomes[name] = "error"
            errors.append(error)
            if promotes:
                _record_error(root, name, run, error)
            console.print(f"  [red]error[/] {name}: {escape(error.summary)}", soft_wrap=True)
        update_progress_artifact(artifact_id=progress, progress=100.0 * done / len(names))
    return outcomes, errors


def _one(root: str, name: str, run: dict[str, str], followed: Following | None) -> str:
    """`realign_target`, followed by what the watch knows of the target: as ``followed``, or by itself."""
    with following(Workspace(Path(root)), name, run["run_id"]) if followed is None else nullcontext(followed) as mine:
        try:
            mine.outcome = realign_target(root, name, run)
        except Exception as raised:
            mine.why = as_safegene_error(raised).summary
            raise
    return mine.outcome


def realign_target(root: str, target: str, run: dict[str, str]) -> str:
    """Run all stages of one target in order, and return the outcome."""
    STAGE_TASKS["fetch-target"](root, target)
    with working_alone(Workspace(Path(root)), target, run) as work:
        if work.decided:
            console.print(f"  {work.decided} {target}: another run decided the same work, by record {work.by}")
            return work.decided
        _decide(root, target)
        outcome = promote(root, target, work.run)
        work.finished = True
    return outcome


def decide_target(root: str, target: str) -> str:
    """Run all stages of one target up to its verdict, and return its outcome; nothing is recorded.

    The verdict is computed again from the judgements, as a promotion does it: DVC may have brought another one.
    """
    from safegene.pipeline.stages.promote import confirmed_outcome

    STAGE_TASKS["fetch-target"](root, target)
    _decide(root, target)
    outcome = confirmed_outcome(Workspace(Path(root)), target)
    console.print(f"  {outcome} {target}, not promoted")
    return outcome


def _decide(root: str, target: str) -> None:
    STAGE_TASKS["calibrate"](root, target)
    pin_incumbent(root, target)
    for name in ("evaluate", "gate"):
        STAGE_TASKS[name](root, target)


def _record_error(root: str, target: str, run: dict[str, str], error: SafegeneError) -> None:
    from safegene.pipeline.stages.promote import record_error

    ws = Workspace(Path(root))
    record_error(ws, target, error, run=run)
