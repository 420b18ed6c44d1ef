"""After an outage, one run does the work of all that the schedule has missed."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.factories.commands import ask


@pytest.fixture
def api(prefect_api: str) -> Iterator[str]:
    """The server, for Prefect's client too: it reads the environment only once, when a test first imports it."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.server import send_queued

    with temporary_settings({PREFECT_API_URL: prefect_api}):
        yield prefect_api
        send_queued()


def post(api: str, path: str, **body: Any) -> Any:
    return ask(f"{api}/{path}", body)


def test_one_run_is_carried_out_for_all_that_an_hour_has_missed(api: str) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow

    from flows.schedule import cancel_missed_runs

    @flow(name="missed")
    def missed() -> int:
        return cancel_missed_runs()

    flow_id = post(api, "flows/", name="missed")["id"]
    every_minute = {"active": True, "schedule": {"cron": "* * * * *", "timezone": "UTC"}}
    deployment = post(api, "deployments/", name="missed", flow_id=flow_id, schedules=[every_minute])["id"]
    now, minute = datetime.now(UTC), timedelta(minutes=1)  # none becomes due while the test runs
    for start, end in ((now - 61 * minute, now - minute), (now + 10 * minute, now + 70 * minute)):
        times = {"start_time": start.isoformat(), "end_time": end.isoformat()}
        post(api, f"deployments/{deployment}/schedule", **times, min_runs=1, max_runs=100)
    asked = post(api, f"deployments/{deployment}/create_flow_run", state={"type": "SCHEDULED"})["id"]

    def states() -> dict[str, str]:
        body = {"deployments": {"id": {"any_": [deployment]}}, "limit": 200}
        return {run["id"]: run["state_name"] for run in post(api, "flow_runs/filter", **body)}

    before = {run["id"]: run for run in post(api, "flow_runs/filter", deployments={"id": {"any_": [deployment]}})}
    due = [key for key, run in before.items() if run["auto_scheduled"] and run["expected_start_time"] < _now()]
    later = [key for key, run in before.items() if run["auto_scheduled"] and key not in due]
    assert len(due) >= 59
    assert len(later) >= 50
    with get_client(sync_client=True) as client:
        first = client.read_flow_run(due[0])
    assert run_flow(missed, flow_run=first) == len(due) - 1
    after = states()
    assert [after[key] for key in due].count("Missed") == len(due) - 1
    assert after[due[0]] == "Completed"
    assert {after[key] for key in later} == {"Scheduled"}
    assert after[asked] == "Scheduled"  # a person has asked for it
    assert missed() == 0  # no schedule started this one


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
