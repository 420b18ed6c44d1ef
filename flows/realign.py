"""Flow ``realign``: fetch -> calibrate -> evaluate -> gate -> promote for each target, on an up-to-date family."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.runtime import flow_run
from rich.markup import escape

from flows.build import build_stages
from flows.tasks import STAGE_TASKS, commit, console, exclusive, pin_incumbent, promote, publish, push
from safegene.errors import ParamsError, SafegeneError
from safegene.workspace.git import head_commit
from safegene.workspace.layout import Workspace


@flow(name="realign", flow_run_name="realign {root}", persist_result=False)
def realign(root: str, targets: list[str] | None = None, trigger: str = "manual") -> dict[str, str]:
    """Re-align targets (default: all) and promote those that pass the gate.

    An error in one target does not stop the others.

    Returns:
        Target -> ``pass``, ``fail`` or ``inconclusive``.

    Raises:
        ParamsError: a named target is not in ``data/targets.yaml``.
        SafegeneError: a stage of the family failed; or, after all targets were tried, one of them ended in an error.
    """
    ws = Workspace(Path(root))
    with exclusive(root):
        names = _chosen(ws, targets)
        build_stages(root)
        run = {"run_id": str(flow_run.id or ""), "trigger": trigger, "git_commit": head_commit(root)}
        outcomes, errors = _each(root, names, run)
        report = publish(root)
        if ws.params.flow.commit:
            commit(root, "realign: " + (", ".join(f"{n} {o}" for n, o in outcomes.items()) or "no targets"))
        if ws.params.flow.push:
            push(root)
    console.print(f"  report: {report}", soft_wrap=True)
    if errors:
        raise SafegeneError("; ".join(error.summary for error in errors), remedy=errors[0].remedy)
    return outcomes


def _chosen(ws: Workspace, targets: list[str] | None) -> list[str]:
    known = ws.targets.targets
    if unknown := sorted(set(targets or ()) - set(known)):
        raise ParamsError(f"expected targets among {sorted(known)}, got {unknown}, for {ws.targets_file}")
    return sorted(targets or known)


def _each(root: str, names: list[str], run: dict[str, str]) -> tuple[dict[str, str], list[SafegeneError]]:
    outcomes: dict[str, str] = {}
    errors: list[SafegeneError] = []
    progress: Any = create_progress_artifact(progress=0.0, key="safegene-realign", description="targets done")
    for done, name in enumerate(names, 1):
        try:
            outcomes[name] = realign_target(root, name, run)
        except SafegeneError as error:
            outcomes[name] = "error"
            errors.append(error)
            _record_error(root, name, run, error)
            console.print(f"  [red]error[/] {name}: {escape(error.summary)}", soft_wrap=True)
        update_progress_artifact(artifact_id=progress, progress=100.0 * done / len(names))
    return outcomes, errors


def realign_target(root: str, target: str, run: dict[str, str]) -> str:
    """Run all stages of one target in order, and return the outcome."""
    for name in ("fetch-target", "calibrate"):
        STAGE_TASKS[name](root, target)
    pin_incumbent(root, target)
    for name in ("evaluate", "gate"):
        STAGE_TASKS[name](root, target)
    return promote(root, target, run)


def _record_error(root: str, target: str, run: dict[str, str], error: SafegeneError) -> None:
    from safegene.pipeline.stages.promote import record_error

    ws = Workspace(Path(root))
    record_error(ws, target, error, run=run)
