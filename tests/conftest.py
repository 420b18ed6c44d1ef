"""What every test runs in: no telemetry, keys and Prefect data of the tests, and the workspaces that tests share."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from safegene.workspace.seal import BYTES, KEY
from tests.factories.commands import run

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

settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
if "CI" not in os.environ:  # where hypothesis has such a profile of its own
    settings.load_profile("busy machine")


SHARING = frozenset(  # files whose tests use the fixture `built`
    f"tests/{name}.py"
    for name in (
        "flows/test_realign",
        "s3/test_workspace",
        "slow/test_kill",
        "slow/test_pipeline_reruns",
        "slow/test_vectors_travel",
        "hostile/test_runs",
        "repair/test_diagnosis",
        "report/test_reuse",
    )
)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give the tests of one file to one worker, and those of the built workspace too: each fixture is built once.

    xdist's own groups (``--dist loadgroup``) have no effect with pytest 9.2, which reads a test's id only once.
    """
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0]
            return "built" if file in SHARING else file

    return ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keys and Prefect's database in a folder of the tests; the model cache is kept, since it is content-addressed."""
    box = tmp_path_factory.mktemp("user")
    before = dict(os.environ)
    os.environ["SAFEGENE_KEYS"] = str(box / "keys")
    os.environ["SAFEGENE_STATE"] = str(box / "state")
    os.environ["SAFEGENE_REMOTES"] = str(box / "remotes")
    (box / "keys").mkdir(mode=0o700)
    (box / "keys" / KEY).touch(0o600)
    (box / "keys" / KEY).write_text("5e" * BYTES)  # the same in every session, so that the cache is of use
    os.environ["PREFECT_HOME"] = str(box / "prefect")
    os.environ.pop("PREFECT_API_URL", None)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _no_memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory of ledgers for each test, since tests change copies of one workspace in different ways."""
    monkeypatch.setenv("SAFEGENE_STATE", str(tmp_path_factory.mktemp("state")))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Public evaluation sets, read where they lie."""
    folder = os.environ.get("SAFEGENE_TEST_DATA")
    if not folder:
        pytest.skip("SAFEGENE_TEST_DATA is unset: the public evaluation sets are not at hand")
    return Path(folder)


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
    """A workspace of the tiny family with one benign target, after one whole run. To be looked at, not changed.

    Nothing is mined, which saves a minute: the demo and the tests of stage ``calibrate`` mine.
    """
    from safegene.pipeline.init import add_target, init

    box = tmp_path_factory.mktemp("built")
    template = (Path(__file__).parents[1] / "params.yaml").read_text()
    assert "mining: {rounds: 1}" in template
    (box / "params.yaml").write_text(template.replace("mining: {rounds: 1}", "mining: {rounds: 0}"))
    ws = init(box / "ws", params=box / "params.yaml")
    add_target(ws, "sentiment", "tiny://sentiment?seed=0", "sentiment")
    done = run(ws.root, "run", PREFECT_API_URL=prefect_api)
    (ws.root / ".safegene" / "first-run.log").write_text(done.stderr)
    return ws.root


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """A private copy of the built workspace."""
    shutil.copytree(built, tmp_path / "ws", symlinks=True)
    return tmp_path / "ws"
