import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

for name, value in {
    "DVC_NO_ANALYTICS": "1",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}.items():
    os.environ.setdefault(name, value)

BIN = Path(sys.executable).parent


@pytest.fixture(scope="session", autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keys and Prefect's database in a folder of the tests; the model cache is kept, since it is content-addressed."""
    box = tmp_path_factory.mktemp("user")
    before = dict(os.environ)
    os.environ["SAFEGENE_KEYS"] = str(box / "keys")
    os.environ["PREFECT_HOME"] = str(box / "prefect")
    os.environ.pop("PREFECT_API_URL", None)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Public evaluation sets, read where they lie."""
    folder = os.environ.get("SAFEGENE_TEST_DATA")
    if not folder:
        pytest.skip("SAFEGENE_TEST_DATA is unset: the public evaluation sets are not at hand")
    return Path(folder)


def run(ws: Path, *command: str, code: int | None = 0, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``safegene ...`` in a workspace; its output is shown when the exit code is not the one expected."""
    environment = {**os.environ, "COLUMNS": "400", **env}
    line = [str(BIN / "safegene"), *command]
    done = subprocess.run(line, cwd=ws, env=environment, capture_output=True, text=True, check=False)
    if code is not None and done.returncode != code:
        pytest.fail(f"{command}: expected exit {code}, got {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def dvc(folder: Path, *arguments: str) -> str:
    line = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


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


@pytest.fixture(scope="session")
def prefect_api(_elsewhere: None) -> Iterator[str]:
    """The address of a real Prefect server with a database of its own; pass it on as PREFECT_API_URL."""
    from flows.server import await_server, quiet_environment, start_server

    quiet_environment()
    server, address = start_server()
    try:
        yield await_server(server, address)
    finally:
        server.terminate()
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> Path:
    """A workspace of the tiny family with one benign target, after one whole run. To be looked at, not changed."""
    from safegene.pipeline.init import add_target, init

    ws = init(tmp_path_factory.mktemp("built") / "ws")
    add_target(ws, "sentiment", "tiny://sentiment?seed=0", "sentiment")
    done = run(ws.root, "run", PREFECT_API_URL=prefect_api)
    (ws.root / ".safegene" / "first-run.log").write_text(done.stderr)
    return ws.root


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """A private copy of the built workspace."""
    shutil.copytree(built, tmp_path / "ws", symlinks=True)
    return tmp_path / "ws"
