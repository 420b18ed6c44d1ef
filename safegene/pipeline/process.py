"""safegene as a process: its progress and errors on stderr, and its end with the flow that started it."""

import ctypes
import json
import logging
import os
import signal
import sys
from pathlib import Path

from rich.console import Console

from safegene.errors import ParamsError, SafegeneError


def show_progress() -> None:
    """What the stages say of their progress goes to stderr; ``SAFEGENE_LOG`` sets the level (default INFO)."""
    log = logging.getLogger("safegene")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("       %(message)s"))
    log.addHandler(handler)
    level = os.environ.get("SAFEGENE_LOG", "INFO").upper()
    if level not in (levels := logging.getLevelNamesMapping()):
        raise ParamsError(f"expected one of the levels {', '.join(levels)} in SAFEGENE_LOG, got {level!r}")
    log.setLevel(level)
    log.propagate = False


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies, so that SIGKILL leaves no child behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def end_with_flow() -> None:
    """As a child of the flow that ``SAFEGENE_DIE_WITH_PARENT`` names: end when it ends, or now if it has ended."""
    parent = os.environ.get("SAFEGENE_DIE_WITH_PARENT")
    if parent is None or sys.platform != "linux":
        return
    die_with_parent()
    try:
        os.kill(int(parent), 0)
    except ProcessLookupError:
        raise SystemExit(1) from None


def report_error(error: SafegeneError, *, trace: bool) -> None:
    """Print an error to stderr, and leave it for the flow if one asked for it (``SAFEGENE_ERROR_FILE``)."""
    if trace:
        Console(stderr=True).print_exception()
    err = Console(stderr=True, highlight=False, soft_wrap=True)
    err.print(f"[bold red]error[/] {type(error).__name__}: ", end="")
    err.print(error.message, markup=False)
    if error.remedy:
        err.print(f"  remedy: {error.remedy}", markup=False)
    if left := os.environ.get("SAFEGENE_ERROR_FILE"):
        fields = {
            "error": type(error).__name__,
            "message": error.message,
            "remedy": error.remedy,
            "exit_code": error.exit_code,
        }
        Path(left).write_text(json.dumps(fields))
