"""What the slow tests share: a Prefect server with all its services."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.server import await_server


class FullServer:
    """A Prefect server as people run it, scheduler and triggers included; the private one of a run has neither."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.folder, self.address = folder, f"http://127.0.0.1:{self.port}/api"

    def start(self, home: str = "prefect") -> None:
        """Start it, with the database of ``home`` in its folder; ready when this returns."""
        own = {"PREFECT_HOME": str(self.folder / home), "PREFECT_API_URL": self.address, "PREFECT_UI_ENABLED": "0"}
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                command, env={**os.environ, **own}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        await_server(self.process, self.address)

    def kill(self) -> None:
        """End it with all that it has started, at once."""
        os.killpg(self.process.pid, 9)
        self.process.wait()


@pytest.fixture(scope="module")
def full_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a full server, for all tests of a file."""
    server = FullServer(tmp_path_factory.mktemp("prefect"))
    server.start()
    yield server.address
    server.kill()
