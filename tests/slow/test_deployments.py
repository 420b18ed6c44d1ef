"""The cron fires; an event starts exactly one run for a new target folder, and none when it is seen again."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safegene.pipeline.init import init
from tests.factories.commands import BIN, ask, run, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def runs(api: str, deployment: str) -> list[dict[str, Any]]:
    body = {"deployments": {"name": {"any_": [deployment]}}, "limit": 100}
    found: list[dict[str, Any]] = ask(f"{api}/flow_runs/filter", body)
    return found


def finished(api: str, deployment: str) -> list[dict[str, Any]]:
    return [r for r in runs(api, deployment) if r["state_type"] in ("COMPLETED", "FAILED", "CRASHED")]


@pytest.fixture
def served(tmp_path: Path, full_server: str) -> Iterator[tuple[Path, Path, str]]:
    """A workspace whose deployments are served, re-aligning every minute, watching a folder that is still empty."""
    watched = tmp_path / "models"
    watched.mkdir()
    ws = init(tmp_path / "ws").root
    text = (ws / "params.yaml").read_text()
    text = text.replace("folders: []", f"folders: ['file://{watched}']").replace("task: null", "task: topic")
    text = text.replace('cron: "0 3 * * *"', 'cron: "* * * * *"').replace('cron: "*/5 * * * *"', 'cron: "0 0 1 1 *"')
    (ws / "params.yaml").write_text(text)
    with (tmp_path / "served.log").open("w") as log:
        server = subprocess.Popen(
            [str(BIN / "safegene"), "deploy"],
            cwd=ws,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PREFECT_API_URL": full_server},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    yield ws, watched, full_server
    os.killpg(server.pid, 9)
    server.wait()
    print((tmp_path / "served.log").read_text()[-4000:])


def test_the_cron_fires_and_an_event_starts_one_run(served: tuple[Path, Path, str]) -> None:
    from safegene.tiny.build import build

    ws, watched, api = served
    scheduled, discovered = f"scheduled-{ws.name}", f"discovered-{ws.name}"
    done = until(lambda: finished(api, scheduled), 400, "the schedule to fire and the run to end")
    assert done[0]["state_type"] == "COMPLETED", done[0]["state"]
    assert (ws / "data/family/vector/manifest.json").is_file()

    # Stop the schedule, so that only the event can start what comes now.
    for one in ask(f"{api}/deployments/filter", {}):
        if one["name"].endswith(f"-{ws.name}"):
            ask(f"{api}/deployments/{one['id']}", {"paused": one["name"] != discovered}, "PATCH")

    shutil.copytree(build("topic", 0), watched / "fresh")
    assert "fresh" in run(ws, "watch", PREFECT_API_URL=api).stdout
    until(lambda: finished(api, discovered), 400, "the event's run to end")
    assert Path(ws / "data/targets/fresh/verdict/manifest.json").is_file()

    assert "0 new" in run(ws, "watch", PREFECT_API_URL=api).stdout
    time.sleep(20)  # an event takes a second to become a run; twenty leave no doubt
    assert len(runs(api, discovered)) == 1, [r["name"] for r in runs(api, discovered)]
