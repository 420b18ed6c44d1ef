"""Commands as a person runs them: safegene, Git and DVC in a folder, and waiting for what they do."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from typer.testing import CliRunner

from safegene.errors import SafegeneError

BIN = Path(sys.executable).parent
T = TypeVar("T")


def run(folder: Path, *command: str, code: int | tuple[int, ...] = 0, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``safegene ...`` in a folder; the test fails, with the output, when the exit code is not an expected one."""
    return _run([str(BIN / "safegene"), *command], folder, code, {"COLUMNS": "400", **env})


@dataclass(frozen=True)
class Called:
    """How a command ended that ran in this process."""

    code: int
    stdout: str
    error: SafegeneError | None


def call(folder: Path, *command: str, code: int | tuple[int, ...] = 0, columns: int = 400) -> Called:
    """``safegene ...`` in a folder, in this process: cheaper than `run`, for commands that start no flow."""
    from safegene.cli.app import app

    with chdir(folder):
        done = CliRunner().invoke(app, command, env={"COLUMNS": str(columns)}, catch_exceptions=True)
    raised = done.exception
    error = raised if isinstance(raised, SafegeneError) else None
    if raised is not None and error is None and not isinstance(raised, SystemExit):
        raise raised
    ended = Called(error.exit_code if error else done.exit_code, done.stdout, error)
    if ended.code not in ((code,) if isinstance(code, int) else code):
        pytest.fail(f"{command}: expected exit {code}, got {ended.code}\n{done.output}\n{error}")
    return ended


def git(folder: Path, *arguments: str) -> str:
    """Standard output of ``git ...``, which must succeed."""
    return _run(["git", "-C", str(folder), *arguments], folder, 0, {}).stdout.strip()


def dvc(folder: Path, *arguments: str, code: int | tuple[int, ...] = 0) -> str:
    """Standard output of ``dvc ...``."""
    return _run([sys.executable, "-m", "dvc", *arguments], folder, code, {}).stdout.strip()


def status(folder: Path) -> dict[str, dict[str, Any]]:
    """``safegene status --json`` by the target's name."""
    return {entry["name"]: entry for entry in json.loads(run(folder, "status", "--json").stdout)["targets"]}


def until(condition: Callable[[], T], seconds: float, why: str, *, every: float = 0.5) -> T:
    """The condition's first true value, asked for every so many seconds; when the time is over, the test fails."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(every)
    pytest.fail(f"waited {seconds:.0f} s for {why}")


def ask(address: str, body: dict[str, Any], method: str = "POST") -> Any:
    """What a Prefect server answers; one with SQLite answers 503 now and then while it is busy."""

    got: list[httpx.Response] = []

    def answered() -> bool:
        try:
            answer = httpx.request(method, address, json=body, timeout=60)
        except httpx.TimeoutException:
            return False
        got.append(answer)
        return answer.status_code != httpx.codes.SERVICE_UNAVAILABLE

    until(answered, 240, f"{address} to answer")
    answer = got[-1].raise_for_status()
    return answer.json() if answer.content else None


def _run(
    command: list[str], folder: Path, code: int | tuple[int, ...], env: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **env}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    expected = (code,) if isinstance(code, int) else code
    if done.returncode not in expected:
        pytest.fail(f"{command}: expected exit {expected}, got {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done
