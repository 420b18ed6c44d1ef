"""Catching up without a flood: of the runs that a schedule has missed, one is carried out.

Where a worker was away, or busy with a long run, Prefect starts every run that its schedule asked for meanwhile. Each
of our flows looks at the present state of things, so the first one does the work of all that are due.
"""

from datetime import UTC, datetime

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterNextScheduledStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled

PAGE = 200


def cancel_missed_runs() -> int:
    """Cancel the runs of the present run's schedule that are due, and return how many there were.

    Does nothing in a run that no schedule started. Runs of events and of people stay: each asks for something else.
    """
    if not flow_run.id:
        return 0
    count, due_by = 0, datetime.now(UTC)
    with get_client(sync_client=True) as client:
        mine = client.read_flow_run(flow_run.id)
        if not mine.auto_scheduled or mine.deployment_id is None:
            return 0
        wanted = FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[mine.deployment_id]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
            next_scheduled_start_time=FlowRunFilterNextScheduledStartTime(before_=due_by),
        )
        why = f"run {mine.name} does the work of every run that was due"
        cancelled = -1
        while cancelled:  # one that another worker has just begun is not cancelled
            due = [one for one in client.read_flow_runs(flow_run_filter=wanted, limit=PAGE) if one.auto_scheduled]
            answers = [client.set_flow_run_state(one.id, Cancelled(name="Missed", message=why)).status for one in due]
            cancelled = answers.count(SetStateStatus.ACCEPT)
            count += cancelled
    if count:
        get_run_logger().info("%d runs that the schedule asked for meanwhile are not carried out: this one is", count)
    return count
