import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from safegene.setup import add_target, init
from safegene.workspace import Workspace

BIN = Path(sys.executable).parent

# Enough for the stages to do real work, and no more: these tests are about schedules and kills, not about recovery.
LIGHT = {
    "  stop_hrr: 0.6": "  stop_hrr: 0.3\n  max_steps: 8\n  probe_every_steps: 8\n  probe_prompts: 16",
}


def run(ws: Path, *command: str, code: int | None = 0, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``safegene ...`` in a workspace; its output is shown when the exit code is not the one expected."""
    done = subprocess.run(
        [str(BIN / "safegene"), *command],
        cwd=ws,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    if code is not None and done.returncode != code:
        pytest.fail(f"{command}: expected exit {code}, got {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def status(ws: Path) -> dict[str, dict[str, Any]]:
    return {t["name"]: t for t in json.loads(run(ws, "status", "--json").stdout)["targets"]}


def until(what: Callable[[], Any], seconds: float, why: str) -> Any:
    """Wait for something, generously; fail with the reason."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.5)
    pytest.fail(f"waited {seconds:.0f} s for {why}")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty workspace of the tiny family."""
    ws = init(tmp_path / "ws")
    add_target(ws, "topic", "tiny://topic?seed=0", "topic")
    return ws


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after one whole run, to be copied."""
    ws = init(tmp_path_factory.mktemp("built") / "ws")
    add_target(ws, "topic", "tiny://topic?seed=0", "topic")
    run(ws.root, "run", code=None)
    return ws.root


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """A private copy of the built workspace."""
    shutil.copytree(built, tmp_path / "ws", symlinks=True)
    return tmp_path / "ws"


@pytest.fixture
def prefect_api(tmp_path: Path) -> Iterator[str]:
    """A real Prefect server with a database of its own."""
    from flows.server import await_server, start_server

    os.environ["PREFECT_HOME"] = str(tmp_path / "prefect")
    server, address = start_server()
    os.environ["PREFECT_API_URL"] = address
    try:
        yield await_server(server, address)
    finally:
        del os.environ["PREFECT_API_URL"]
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
