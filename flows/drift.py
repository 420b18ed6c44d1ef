"""Flow ``drift``: evaluate what is live again, on the present suite; report what no longer passes, or roll it back."""

from pathlib import Path
from typing import cast

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed
from rich.markup import escape

from flows.realign import follow_up
from flows.schedule import cancel_missed_runs
from flows.shown import run_name, tag_run
from flows.tasks import STAGE_TASKS, console, exclusive, update
from safegene.errors import PromotionRefused, SafegeneError, as_safegene_error
from safegene.ledger.drift import DriftCheck
from safegene.pipeline.drift import check_drift, roll_back_drifted
from safegene.workspace.git import head_commit
from safegene.workspace.layout import Workspace

STATES = {"fail": "Drifted", "inconclusive": "Inconclusive", "pass": "Still passes"}
"""Outcome -> name of the run's final state; of several the first here decides."""


@flow(name="drift", flow_run_name=run_name, persist_result=False)
def drift(root: str, targets: list[str] | None = None, trigger: str = "manual") -> dict[str, str]:
    """Check what is live for each target (default: all), and roll back where ``promote.on_drift`` says so.

    An error in one target does not stop the others.

    Returns:
        Target -> ``pass``, ``fail`` or ``inconclusive``, of what was live before any rollback; only where something is.

    Raises:
        SafegeneError: after all targets were tried, one of them could not be checked.
    """
    ws = Workspace(Path(root).resolve())
    root = str(ws.root)
    cancel_missed_runs()
    outcomes, said, errors = dict[str, str](), list[str](), list[SafegeneError]()
    run = {"run_id": str(flow_run.id or ""), "trigger": f"drift, {trigger}", "git_commit": head_commit(root)}
    with exclusive(root):
        update(root)
        names = sorted(targets or ws.targets.targets)
        tag_run(root, names)
        STAGE_TASKS["validate"](root, "")
        for name in names:
            try:
                check = check_live(root, name)
                if check is None:
                    continue
                outcomes[name] = check.outcome
                said += [f"{name}: {line}" for line in _followed(ws, check, run)]
            except Exception as raised:  # one target must not stop the others
                error = as_safegene_error(raised)
                errors.append(error)
                console.print(f"  [red]error[/] {name}: {escape(error.summary)}", soft_wrap=True)
        found = ", ".join(f"{name} {outcome}" for name, outcome in outcomes.items())
        errors += follow_up(ws, "drift", found or "nothing checked", names, keeps=True)
    if errors:
        raise SafegeneError("; ".join(error.summary for error in errors), remedy=errors[0].remedy)
    worst = next((STATES[outcome] for outcome in STATES if outcome in outcomes.values()), "Nothing live")
    state: State[dict[str, str]] = Completed(name=worst, message="\n".join(said) or "nothing is live", data=outcomes)
    return cast(dict[str, str], state)  # Prefect returns the state's data to the caller


@task(name="drift", task_run_name="drift {target}", cache_policy=NO_CACHE, persist_result=False)
def check_live(root: str, target: str) -> DriftCheck | None:
    """See `safegene.pipeline.drift.check_drift`."""
    check = check_drift(Workspace(Path(root)), target)
    get_run_logger().info("%s: %s", target, check.sentence if check else "nothing is live")
    if check:
        colour = {"pass": "green", "fail": "red"}.get(check.outcome, "yellow")
        console.print(f"  [{colour}]{check.outcome}[/] drift@{target}: {escape(check.sentence)}", soft_wrap=True)
    return check


def _followed(ws: Workspace, check: DriftCheck, run: dict[str, str]) -> list[str]:
    """What is said of a check, and of each rollback that follows it: what was live before is checked as well."""
    said = [check.sentence]
    while check.outcome == "fail" and ws.params.promote.on_drift == "rollback":
        try:
            said.append(roll_back_drifted(ws, check, run).message)
        except PromotionRefused as refused:
            said.append(f"not rolled back: {refused.summary}")
            break
        again = check_live(str(ws.root), check.target)
        if again is None or again.release == check.release:
            break
        check = again
        said.append(check.sentence)
    for line in said[1:]:
        console.print(f"  [yellow]rollback[/] {escape(line)}", soft_wrap=True)
    return said
