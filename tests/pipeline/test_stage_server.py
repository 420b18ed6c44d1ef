"""A stage server: it runs commands as their own processes would, and everything ends with who asked for it."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from safegene.pipeline import stage_server
from safegene.pipeline.stage_server import ADDRESS, SWITCH, StageServer, is_usable
from tests.factories.commands import BIN, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a stage server is used on Linux only")


@pytest.fixture(scope="module")
def server() -> Iterator[StageServer]:
    server = StageServer()
    yield server
    server.close()


def asked(server: StageServer | None, *words: str, cwd: Path) -> "subprocess.Popen[str]":
    """``safegene WORDS``, with the address of a server if there is one."""
    environment = {**os.environ, **({ADDRESS: server.address} if server else {})}
    streams = subprocess.PIPE
    return subprocess.Popen(
        [BIN / "safegene", *words], cwd=cwd, env=environment, stdin=streams, stdout=streams, stderr=streams, text=True
    )


def test_a_command_has_its_own_arguments_streams_directory_and_exit_code(server: StageServer, tmp_path: Path) -> None:
    def both(*words: str) -> list[tuple[str, str, int]]:
        processes = [asked(each, *words, cwd=tmp_path) for each in (server, None)]
        return [(*process.communicate(timeout=240), process.returncode) for process in processes]

    for words in (["gate", "--help"], ["gate", "verify"], ["gate", "sentiment"]):
        forked, alone = both(*words)
        assert forked == alone
    assert "workspace" in alone[1]
    assert alone[2] != 0


BLOCKED = """
import os, pathlib, socket, sys, time
from safegene.pipeline.stage_server import Server
Server(socket.socket(fileno=int(sys.argv[1])), iter(())).serve()
pathlib.Path("pid").write_text(str(os.getpid()))
try:
    time.sleep(3600)
except KeyboardInterrupt:
    raise SystemExit(7)
"""


@pytest.fixture
def blocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StageServer]:
    """A server whose commands write their process id and wait."""
    script = tmp_path / "blocked.py"
    script.write_text(BLOCKED)
    start = subprocess.Popen

    def popen(command: list[str], **options: object) -> "subprocess.Popen[bytes]":
        return start([sys.executable, str(script), command[-1]], **options)  # type: ignore[call-overload,no-any-return]

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", popen)
        server = StageServer()
    yield server
    server.close()


def started(folder: Path) -> psutil.Process:
    pid = folder / "pid"
    until(lambda: pid.is_file() and pid.read_text() != "", 120, "the command to run")
    return psutil.Process(int(pid.read_text()))


def test_a_command_ends_with_its_asker(blocked: StageServer, tmp_path: Path) -> None:
    asker = asked(blocked, "gate", cwd=tmp_path)
    command = started(tmp_path)
    asker.kill()
    asker.wait()
    assert psutil.wait_procs([command], timeout=120)[1] == []
    asker.communicate()
    assert blocked.serves


def test_a_command_and_its_asker_end_with_the_server(blocked: StageServer, tmp_path: Path) -> None:
    asker = asked(blocked, "gate", cwd=tmp_path)
    command = started(tmp_path)
    blocked.close()
    asker.communicate(timeout=120)
    assert asker.returncode == 1
    assert psutil.wait_procs([command], timeout=120)[1] == []
    assert not Path(blocked.address).parent.exists()


def test_a_server_that_is_importing_ends_at_once(tmp_path: Path) -> None:
    """A run that is killed while its server imports leaves nothing behind."""
    importing = (
        "import pathlib, socket, sys, time\n"
        "from safegene.pipeline.stage_server import Server\n"
        "def libraries():\n"
        "    pathlib.Path('pid').touch()\n"
        "    end = time.monotonic() + 3600\n"
        "    while time.monotonic() < end: pass\n"
        "    yield\n"
        "Server(socket.socket(fileno=int(sys.argv[1])), libraries()).serve()\n"
    )
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        command = [sys.executable, "-c", importing, str(listener.fileno())]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()], cwd=tmp_path)
    environment = {**os.environ, ADDRESS: str(tmp_path / "s")}
    asker = subprocess.Popen([BIN / "safegene", "fetch"], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    until((tmp_path / "pid").exists, 120, "the import")
    assert server.stdin is not None
    server.stdin.close()
    assert server.wait(120) == 0
    assert asker.wait(120) != 0, "it runs alone, and there is no workspace"


def test_a_signal_and_an_interrupt_are_exit_codes(blocked: StageServer, tmp_path: Path) -> None:
    for number, code in ((signal.SIGTERM, 128 + 15), (signal.SIGINT, 7)):
        asker = asked(blocked, "gate", cwd=tmp_path)
        started(tmp_path).send_signal(number)
        asker.communicate(timeout=120)
        assert asker.returncode == code
        (tmp_path / "pid").unlink()


def test_where_no_server_answers_the_command_runs_alone(tmp_path: Path) -> None:
    gone = StageServer()
    gone.close()
    process = asked(gone, "--version", cwd=tmp_path)
    assert process.communicate(timeout=240)[0].strip()
    assert process.returncode == 0


def test_a_server_is_kept_while_it_serves_the_present_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_server, "_server", None)
    first = stage_server.stage_server()
    assert first is not None
    assert stage_server.stage_server() is first
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    second = stage_server.stage_server()
    assert second is not None
    assert second is not first
    assert not first.serves
    monkeypatch.setenv(SWITCH, "0")
    second.close()
    assert stage_server.stage_server() is None


def test_no_server_beside_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    for device in ("nvidia0", "nvidiactl", "kfd", "accel0"):
        monkeypatch.setattr(os, "listdir", lambda _, device=device: ["null", device])
        assert not is_usable()
    monkeypatch.setattr(os, "listdir", lambda _: ["null", "tty"])
    assert is_usable()


def test_the_libraries_start_no_thread_and_no_accelerator() -> None:
    code = (
        "import sys, threading, torch\n"
        "from safegene.cli.entry import libraries\n"
        "assert len(list(libraries())) == 4\n"
        "assert 'peft' in sys.modules and 'safegene.pipeline.stages.evaluate' in sys.modules\n"
        "assert threading.active_count() == 1\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
