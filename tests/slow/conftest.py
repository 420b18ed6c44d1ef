"""What the slow tests share: a Prefect server with all its services."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from flows.server import await_server


@pytest.fixture(scope="module")
def full_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server as people run it, scheduler and triggers included; the private one of a run has neither."""
    tmp_path = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}/api"
    home = {"PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_API_URL": address, "PREFECT_UI_ENABLED": "0"}
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, **home},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    await_server(server, address)
    yield address
    os.killpg(server.pid, 9)
    server.wait()
