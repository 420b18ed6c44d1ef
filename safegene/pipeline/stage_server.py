"""A process that has imported the libraries of the stages once, and forks itself for each stage of a run.

Importing torch, transformers and PEFT takes more CPU seconds than most stages of a small model, and a run starts each
stage as a process of its own. So a run starts one server. DVC still starts ``safegene STAGE``; this command finds the
server's address in its environment, sends its arguments, directory, environment and standard streams, and ends as the
forked process ends. Where no server answers, it runs the stage itself.

The server imports nothing before a stage needs it, computes nothing, and starts no thread. It ends, with all that it
runs, when the process that started it ends; a stage ends when the command that asked for it ends. No server is used
where an accelerator is visible, since a driver that was asked before a fork does not work after it.

This module is imported at every start of ``safegene``, so it imports what it needs in its functions.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import socket

ADDRESS = "SAFEGENE_STAGE_SERVER"  # environment: where the server of this run listens
SWITCH = "SAFEGENE_PRELOAD"  # environment: 0 starts each stage as a new process
LIGHT = frozenset({"validate", "gate"})
"""Stages that need none of the libraries, and do not wait for them."""
LAST = frozenset({"gate"})
"""Of these, those after which a run of one target needs none."""
ACCELERATORS = ("nvidia", "kfd", "accel")
"""How the names of their devices start."""
_READ_AT_IMPORT = ("PYTHON", "LD_", "OMP_", "MKL_", "OPENBLAS_", "HF_", "TRANSFORMERS_", "TORCH", "TOKENIZERS_")


def read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a library reads once, when it is imported: a server serves commands with the same only."""
    from safegene.workspace.credentials import without_secrets

    return {name: value for name, value in without_secrets(environment).items() if name.startswith(_READ_AT_IMPORT)}


def is_usable() -> bool:
    """Whether stages may be forked here: Linux, no accelerator, and not turned off."""
    return (
        sys.platform == "linux"
        and os.environ.get(SWITCH) != "0"
        and not any(name.startswith(ACCELERATORS) for name in os.listdir("/dev"))
    )


def ask() -> int | None:
    """Have the server of the environment run this command.

    Returns:
        The exit code of the process that ran it; None where no server took it.
    """
    if not (address := os.environ.get(ADDRESS)):
        return None
    import json
    import signal
    import socket

    request = json.dumps({"argv": sys.argv, "directory": os.getcwd(), "environment": dict(os.environ)}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(address)
            socket.send_fds(connection, [len(request).to_bytes(8, "big")], [0, 1, 2])
            connection.sendall(request)
            if not connection.recv(1):
                return None
        except OSError:
            return None
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that runs the command gets it too, and answers it
        code = connection.recv(1)
    return code[0] if code else 1


class StageServer:
    """A server as the process that started it sees it.

    Attributes:
        address: of its socket.
        read_at_import: the variables of `read_at_import` that it was started with.
    """

    def __init__(self) -> None:
        import socket
        import subprocess
        import tempfile

        from safegene.workspace.credentials import without_secrets

        self.read_at_import = read_at_import(os.environ)
        self.address = os.path.join(tempfile.mkdtemp(prefix="safegene-"), "stages")  # a folder of this user alone
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.address)
            listener.listen()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "safegene.cli.entry", str(listener.fileno())],
                stdin=subprocess.PIPE,  # its end tells the server that this process has ended
                pass_fds=[listener.fileno()],
                env=without_secrets(os.environ),  # a stage that needs credentials brings them with its request
            )

    @property
    def serves(self) -> bool:
        """Whether it runs, and serves commands of the present environment."""
        return self._process.poll() is None and self.read_at_import == read_at_import(os.environ)

    def close(self) -> None:
        """End the server and what it runs."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


_server: StageServer | None = None


def stage_server() -> StageServer | None:
    """The server of this process, started where there is none that serves; None where none may be used."""
    import atexit

    global _server
    if _server is not None and not _server.serves:
        _close()
    if _server is None and is_usable():
        _server = StageServer()
        atexit.unregister(_close)
        atexit.register(_close)
    return _server


def _close() -> None:
    global _server
    if _server is not None:
        _server.close()
        _server = None


class Server:
    """The server as its own process.

    Attributes:
        libraries: each step imports some of the libraries that stages need.
        complete: whether all of them are imported.
        running: the commands that run, by process.
    """

    def __init__(self, listener: "socket.socket", libraries: Iterator[None]) -> None:
        import fcntl
        import signal

        self.listener, self.libraries, self.complete = listener, libraries, False
        self.running: dict[int, socket.socket] = {}
        self.wake, self.woken = os.pipe()
        for end in (self.wake, self.woken):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self.woken)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the commands, whose exit codes the server sends
        signal.signal(signal.SIGIO, lambda *_: self._end())  # standard input ends: at once, also during an import
        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)

    def serve(self) -> None:
        """Serve until standard input ends. Returns in each forked process, which then runs ``sys.argv``."""
        import select

        wanted = False
        while True:
            pause = 0 if wanted and not self.complete else None
            waited: list[Any] = [0, self.wake, self.listener, *self.running.values()]
            ready, _, _ = select.select(waited, [], [], pause)
            if 0 in ready and not os.read(0, 1):
                self._end()
            if self.wake in ready:
                os.read(self.wake, 4096)
            self._follow(ready)
            if self.listener in ready:
                connection, _ = self.listener.accept()
                try:
                    request, streams = _receive(connection)
                except ValueError:  # its asker ended before it was whole
                    connection.close()
                    continue
                stage = request["argv"][1:2]
                wanted = wanted or not LAST.intersection(stage)
                while not self.complete and not LIGHT.intersection(stage):
                    self._import_next()
                if self._forked(connection, streams):
                    return _become(request)
            elif not ready:
                self._import_next()

    def _import_next(self) -> None:
        try:
            next(self.libraries)
        except Exception:  # all are imported; or one cannot be, and the stage that needs it says why
            self.complete = True

    def _follow(self, ready: list[Any]) -> None:
        """Send the exit codes of the commands that ended, and end those whose asker has ended."""
        import signal

        for process, connection in [*self.running.items()]:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                with suppress(OSError):
                    connection.send(bytes([code if code >= 0 else 128 - code]))
                self.running.pop(process).close()
            elif connection in ready:
                os.kill(process, signal.SIGKILL)

    def _forked(self, connection: "socket.socket", streams: list[int]) -> bool:
        """Fork; True in the new process, whose standard streams are those of the command."""
        import gc
        import signal

        gc.collect()
        gc.freeze()  # otherwise the first collection of each new process copies the memory
        process = os.fork()
        if process == 0:
            for number, (name, stream) in enumerate(zip(("stdin", "stdout", "stderr"), streams, strict=True)):
                os.dup2(stream, number)
                old = getattr(sys, name)  # what it knows of its file, such as whether it can seek, is no longer so
                how = {"encoding": old.encoding, "errors": old.errors, "closefd": False}
                setattr(sys, name, open(number, old.mode, buffering=1 if name == "stderr" else -1, **how))  # noqa: SIM115
            for each in (self.listener, connection, *self.running.values()):
                each.close()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGIO, signal.SIG_DFL)
            for end in (self.wake, self.woken):
                os.close(end)
        else:
            self.running[process] = connection
            with suppress(OSError):
                connection.send(b"+")
        for stream in streams:
            os.close(stream)
        return process == 0

    def _end(self) -> NoReturn:
        """End every command, the socket, and this process."""
        import signal

        for process in self.running:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        address = self.listener.getsockname()
        with suppress(OSError):
            os.unlink(address)
            os.rmdir(os.path.dirname(address))
        os._exit(0)


def _receive(connection: "socket.socket") -> tuple[dict[str, Any], list[int]]:
    """A request, and the standard streams of its command."""
    import json
    import socket

    length, streams, _, _ = socket.recv_fds(connection, 8, 3)
    data = bytearray()
    while len(data) < int.from_bytes(length, "big") and (part := connection.recv(1 << 16)):
        data += part
    request: dict[str, Any] = json.loads(data)
    return request, streams


def _become(request: dict[str, Any]) -> None:
    """Take the arguments, the directory and the environment of a request."""
    sys.argv = request["argv"]
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    del os.environ[ADDRESS]
