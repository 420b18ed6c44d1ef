"""The Prefect server of a run: the configured one, else a private one that ends with the run."""

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from safegene.errors import SafegeneError
from safegene.pipeline.doctor.finding import Finding
from safegene.pipeline.process import die_with_parent
from safegene.workspace.deadline import within

log = logging.getLogger("safegene.flows")
START_SECONDS = 120
ANSWER_SECONDS = 20.0
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT_CLI_PROMPT": "false",
}


def quiet_environment(console: str = "CRITICAL") -> None:
    """Turn off Prefect's telemetry and console log, unless the user set them; call before Prefect is imported.

    Args:
        console: level from which on Prefect's own log lines are printed; those of a worker include why a run crashed.
    """
    for name, value in {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": console, **QUIET}.items():
        os.environ.setdefault(name, value)


@contextmanager
def prefect_server() -> Iterator[str]:
    """Address of the API: ``PREFECT_API_URL`` if it is set, else that of a private server, started for the block.

    The private server keeps its runs in Prefect's own database, so that ``prefect server start`` shows them later.

    Raises:
        SafegeneError: the private server did not answer within 120 s, or the configured one within 20 s.
    """
    quiet_environment()
    if configured := os.environ.get("PREFECT_API_URL"):
        _require_server(configured)
        yield configured
        return
    log.info("starting a Prefect server for this run, since PREFECT_API_URL names none")
    server, address = start_server()
    os.environ["PREFECT_API_URL"] = address
    try:
        _import_flows()
        yield await_server(server, address)
    finally:
        send_queued()
        del os.environ["PREFECT_API_URL"]
        server.terminate()
        try:
            server.wait(timeout=5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _import_flows() -> None:
    """Import what a run needs next, which takes as long as a server needs to start."""
    import flows.realign  # noqa: F401


def check_server() -> Iterator[Finding]:
    """What is wrong with the configured server; nothing where a run starts a private one."""
    quiet_environment()
    if configured := os.environ.get("PREFECT_API_URL"):
        try:
            _require_server(configured)
        except SafegeneError as error:
            yield Finding.of("server", error)


def _require_server(address: str) -> None:
    """Ask the configured server for its health; a server that needs a login has one, as Prefect's client knows it."""
    from prefect.client.orchestration import PrefectClient
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY

    login = {"auth_string": PREFECT_API_AUTH_STRING.value(), "api_key": PREFECT_API_KEY.value()}

    async def reason() -> Exception | None:  # with the address itself: Prefect reads its settings once only
        async with PrefectClient(address, **login) as client:
            return await client.api_healthcheck()

    got: Exception | None
    try:
        got = within(ANSWER_SECONDS, lambda: asyncio.run(reason()))
    except Exception as error:
        got = error
    if got is not None:
        text = " ".join(str(got).split())[:200] or type(got).__name__
        raise SafegeneError(
            f"expected the Prefect server of PREFECT_API_URL at {address} to answer, got {text}",
            remedy="start it (`prefect server start`), or unset PREFECT_API_URL: then each run has a private one",
        ) from None


def send_queued() -> None:
    """Wait until logs and events, which Prefect sends in the background, have reached the server."""
    if "prefect" not in sys.modules:
        return
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=10)
    EventsWorker.drain_all(timeout=10)


def start_server(*, pages: bool = False) -> tuple[subprocess.Popen[bytes], str]:
    """Start a server on a free port of this machine, with Prefect's pages or without; its process and address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"]
    address = f"http://127.0.0.1:{port}/api"
    without_pages = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
    private = {"PREFECT_UI_API_URL": address} if pages else without_pages
    private["PREFECT__SERVER_FINAL"] = "1"
    environment = {**os.environ, **private}
    server = subprocess.Popen(command, env=environment, preexec_fn=die_with_parent, start_new_session=True)  # noqa: PLW1509 (Linux, one thread)
    return server, address


def await_server(server: subprocess.Popen[bytes], address: str) -> str:
    """Wait until the server answers.

    Raises:
        SafegeneError: it ended, or did not answer within 120 s.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(f"{address}/health", timeout=5).status_code == 200:
                return address
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise SafegeneError(
        f"expected a Prefect server at {address} within {START_SECONDS} s, got none (exit {server.poll()})",
        remedy="start one with `prefect server start` and set PREFECT_API_URL",
    )
