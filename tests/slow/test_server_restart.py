"""A schedule outlives the server: killed and started again on the same database, it starts runs as before."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.factories.commands import ask, until
from tests.factories.ledger import make_workspace
from tests.slow.conftest import FullServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SCHEDULES = """
flow: {cron: "0 3 1 1 *", audit_cron: "* * * * *", drift_cron: "0 3 1 1 *"}
watch: {cron: "0 3 1 1 *"}
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FullServer]:
    """A server that no other test uses, since this one kills it."""
    started = FullServer(tmp_path)
    started.start()
    yield started
    started.kill()


@pytest.fixture
def served(tmp_path: Path, server: FullServer) -> Iterator[str]:
    """The deployment of a workspace that audits its ledger every minute, in a worker that stays."""
    ws = make_workspace(tmp_path / "ws")
    with (ws.root / "params.yaml").open("a") as params:
        params.write(SCHEDULES)
    with (tmp_path / "served.log").open("w") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "flows.deployments", str(ws.root)],
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PREFECT_API_URL": server.address},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    yield f"audit-{ws.root.name}"
    os.killpg(worker.pid, 9)
    worker.wait()
    print((tmp_path / "served.log").read_text()[-4000:])


def runs(server: FullServer, deployment: str) -> list[dict[str, Any]]:
    body = {"deployments": {"name": {"any_": [deployment]}}, "limit": 200}
    found: list[dict[str, Any]] = ask(f"{server.address}/flow_runs/filter", body)
    return found


def removed(server: FullServer, run: str) -> bool:
    """Whether the run is gone; a busy server answers that later."""
    try:
        answer = httpx.delete(f"{server.address}/flow_runs/{run}", timeout=60)
    except httpx.TimeoutException:
        return False
    return answer.status_code in (httpx.codes.NO_CONTENT, httpx.codes.NOT_FOUND)


def test_the_cron_fires_after_the_server_was_killed_and_started_again(server: FullServer, served: str) -> None:
    """By the schedule itself: what the first server had planned ahead is removed."""
    until(lambda: runs(server, served), 240, "the worker to register its deployments")
    server.kill()
    server.start()
    restarted = datetime.now(UTC).isoformat()
    for run in runs(server, served):
        until(partial(removed, server, run["id"]), 120, "the server to remove a run")

    def done() -> list[dict[str, Any]]:
        ended = ("COMPLETED", "FAILED", "CRASHED")
        return [one for one in runs(server, served) if one["created"] > restarted and one["state_type"] in ended]

    first = until(done, 420, "the schedule to start a run after the restart, and the worker to end it")[0]
    assert first["auto_scheduled"]
    assert first["state_type"] == "COMPLETED", first["state"]
