"""safegene as a process: progress and errors on stderr, the error file for the parent, the end with the parent."""

import ctypes
import io
import logging
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from safegene import errors
from safegene.errors import ParamsError, SafegeneError
from safegene.pipeline.progress import ProgressHandler
from safegene.text import redact_text, visible
from safegene.workspace.atomic import write_file
from safegene.workspace.parsing import Strict, parse_json

ERROR_FILE = "SAFEGENE_ERROR_FILE"  # environment: where a child process leaves its error
LOG_FILE = "SAFEGENE_LOG_FILE"  # environment: where a child process writes its log lines too, each after its level
LIMITS = "SAFEGENE_STAGE_LIMITS"  # environment: seconds, and bytes of memory or 0, that a stage of a run may take
PARENT = "SAFEGENE_DIE_WITH_PARENT"  # environment: process id of the flow that started the child


class ErrorFile(Strict):
    """An error as a child process leaves it for its parent.

    Attributes:
        error: name of the class, one of `safegene.errors`.
        message: the sentence.
        remedy: what the user can do about it.
        exit_code: the child's exit code.
    """

    error: str
    message: str
    remedy: str
    exit_code: int

    @classmethod
    def of(cls, error: SafegeneError) -> "ErrorFile":
        """The content of the file for an error."""
        name = type(error).__name__
        return cls(error=name, message=error.message, remedy=error.remedy, exit_code=error.exit_code)

    def rebuild(self, stage: str) -> SafegeneError:
        """The error with its class, message, remedy and exit code.

        A class that `safegene.errors` does not have, such as a plug-in's, becomes a SafegeneError whose message starts
        with the name of the class.

        Args:
            stage: the stage that the child ran, as DVC names it.
        """
        kind = getattr(errors, self.error, None)
        if isinstance(kind, type) and issubclass(kind, SafegeneError):
            error = kind(self.message, remedy=self.remedy)
        else:
            error = SafegeneError(f"{self.error}: {self.message}", remedy=self.remedy)
        error.exit_code = self.exit_code
        error.stage = stage
        return error


def read_error(path: Path, stage: str) -> SafegeneError | None:
    """The error that a child process left, or None if it left none.

    Raises:
        FormatError: the file has another form.
    """
    return parse_json(ErrorFile, path.read_bytes(), where=str(path)).rebuild(stage) if path.is_file() else None


def show_progress() -> None:
    """Send the log of the stages to stderr; ``SAFEGENE_LOG`` sets the level (default INFO).

    Raises:
        ParamsError: ``SAFEGENE_LOG`` is not a level.
    """
    log = logging.getLogger("safegene")
    log.addHandler(ProgressHandler())
    if path := os.environ.get(LOG_FILE):
        with suppress(OSError):  # the lines are printed all the same
            copy = open(path, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 (until the process ends)
            log.addHandler(ProgressHandler(copy, layout="%(levelname)s %(message)s"))
    level = os.environ.get("SAFEGENE_LOG", "INFO").upper()
    if level not in (levels := logging.getLevelNamesMapping()):
        raise ParamsError(f"expected one of the levels {', '.join(levels)} in SAFEGENE_LOG, got {level!r}")
    log.setLevel(level)
    log.propagate = False


def open_standard_streams() -> None:
    """Open the null device for each standard stream that the caller closed.

    Otherwise the next file that is opened gets its number, and what a library prints is written into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding, or a name that is no Unicode
            stream.reconfigure(errors="backslashreplace")


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies, so that SIGKILL leaves no child behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def end_with_flow() -> None:
    """End this process when the flow that ``SAFEGENE_DIE_WITH_PARENT`` names ends, or now if it has ended already."""
    parent = os.environ.get(PARENT)
    if parent is None or sys.platform != "linux":
        return
    die_with_parent()
    try:
        os.kill(int(parent), 0)
    except ProcessLookupError:
        raise SystemExit(1) from None


def keep_within_limits() -> None:
    """Bound this process as ``SAFEGENE_STAGE_LIMITS`` says, and let Linux end it before others where memory runs out.

    At the end of its time it is ended by SIGALRM, also while a library computes; beyond its memory, it gets no more.
    """
    if not (limits := os.environ.get(LIMITS)):
        return
    seconds, most = map(int, limits.split())
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    with suppress(OSError):  # not every system has it
        Path("/proc/self/oom_score_adj").write_text("500")
    if most:
        with suppress(ValueError, OSError):  # above a limit that the process has already
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def report_error(error: SafegeneError, *, trace: bool) -> None:
    """Print an error to stderr, and write it to ``SAFEGENE_ERROR_FILE`` if the parent process asked for it.

    Args:
        error: the error.
        trace: also print the trace of the exception that is being handled.
    """
    err = Console(stderr=True, highlight=False, soft_wrap=True)
    with suppress(OSError):  # standard error may be a closed pipe or a file on a full disk
        if trace:
            with err.capture() as captured:
                err.print_exception()
            err.print(redact_text(captured.get()), markup=False)
        err.print("[bold red]error[/] ", end="")
        err.print(visible(error.summary), markup=False)
        if error.remedy:
            err.print(f"  remedy: {visible(error.remedy)}", markup=False)
    if path := os.environ.get(ERROR_FILE):
        with suppress(OSError):  # the parent says that the stage failed, and where to read why
            write_file(Path(path), ErrorFile.of(error).model_dump_json())
