"""The log of the stages on stderr: one live line with a bar on a terminal; elsewhere, a line from time to time.

`safegene.workspace.progress.log_progress` gives the numbers.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, TextIO

from safegene.text import redact_text, visible
from safegene.workspace.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

LINE_SECONDS = 30.0  # between two lines of progress in a log
DRAW_SECONDS = 0.2  # between two drawings of the live line
INDENT = " " * 7


@dataclass
class _Loop:
    """A loop that is being shown: its state, when it got there and by how many steps at once, and where it began."""

    now: Progress
    since: float
    start: float
    first: int
    jump: int = 1

    def words(self, clock: float) -> str:
        """Where it is, and the time left."""
        return ", ".join(filter(None, (_shown(self.now.words), self.left(clock))))

    def left(self, clock: float) -> str:
        """The time left at the speed so far, in words; "" where no speed is known.

        Steps that take longer than those before them are themselves a measure of the speed of those after them.
        """
        steps = self.now.done - self.first
        left = self.now.total - self.now.done
        if steps <= 0 or left <= 0:
            return ""
        each, running = (self.since - self.start) / steps, clock - self.since
        if running <= each * self.jump:
            return time_left(each * left - running)
        later = left - self.jump
        return time_left((clock - self.start) / (steps + self.jump) * later if later > 0 else None)


class ProgressHandler(logging.Handler):
    """Writes log records as lines; a record of progress moves the bar, or is a line every 30 seconds.

    Args:
        stream: where to write; None for stderr.
        live: whether to draw a live line; None for whether ``stream`` is a terminal that can.
        layout: of a line, as `logging.Formatter` takes it.
        clock: seconds, rising.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        live: bool | None = None,
        layout: str = f"{INDENT}%(message)s",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.stream = stream or sys.stderr
        self.setFormatter(_Formatter(layout))
        terminal = self.stream.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")
        self._live = terminal if live is None else live
        self._clock = clock
        self._bars: Bars | None = None
        self._overall: _Loop | None = None
        self._inner: _Loop | None = None
        self._line, self._drawn = clock(), -inf

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record; what cannot be written is left out, as any handler does."""
        try:
            progress: Progress | None = getattr(record, "progress", None)
            if progress is None:
                self._print(self.format(record))
            else:
                self._advance(progress, record)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Take the live line away."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
        super().close()

    def _advance(self, progress: Progress, record: logging.LogRecord) -> None:
        clock = self._clock()
        if progress.overall:
            self._overall, self._inner = _moved(self._overall, progress, clock), None
        else:
            self._inner = _moved(self._inner, progress, clock)
        loops = [loop for loop in (self._overall, self._inner) if loop]
        if self._live:
            self._draw(loops, clock)
        elif clock - self._line >= LINE_SECONDS:
            self._line = clock
            words = "; ".join(loop.words(clock) for loop in loops)
            shown = logging.makeLogRecord({**record.__dict__, "args": (words,)})
            self._print(self.format(shown))

    def _draw(self, loops: list[_Loop], clock: float) -> None:
        if clock - self._drawn < DRAW_SECONDS:
            return
        self._drawn = clock
        bars = self._bars = self._bars or _new_bars(self.stream)
        for task in bars.task_ids:
            bars.remove_task(task)
        outer = loops[0].now
        note = [loops[0].left(clock), _shown(outer.note), *(_shown(loop.now.words) for loop in loops[1:])]
        what = f"{INDENT}{_shown(outer.what)}"
        bars.add_task(what, total=outer.total, completed=outer.done, note=", ".join(filter(None, note)))
        bars.refresh()

    def _print(self, line: str) -> None:
        if self._bars is not None:
            self._bars.console.print(line, markup=False, soft_wrap=True)
        else:
            self.stream.write(f"{line}\n")
            self.stream.flush()


class _Formatter(logging.Formatter):
    """No line of the log holds a secret or a control character of a file's name."""

    def format(self, record: logging.LogRecord) -> str:
        return _shown(super().format(record))


def _moved(loop: _Loop | None, progress: Progress, clock: float) -> _Loop:
    """The loop with its new state; another loop, or one that starts again, is a new one."""
    if loop is None or loop.now.what != progress.what or progress.done < loop.now.done:
        return _Loop(progress, clock, clock, progress.done)
    if (jump := progress.done - loop.now.done) > 0:
        loop.since, loop.jump = clock, jump
    loop.now = progress
    return loop


def _shown(text: str) -> str:
    return visible(redact_text(text))


def _new_bars(stream: TextIO) -> "Bars":
    """One line that is taken away at the end. It has no thread, and hides no cursor that a kill could leave hidden."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Column

    class Shown(Console):
        def show_cursor(self, show: bool = True) -> bool:  # noqa: ARG002 (the library's name)
            return False

    what = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True))
    rest = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    note = TextColumn("{task.fields[note]}", markup=False, table_column=rest)
    console = Shown(file=stream, highlight=False, force_terminal=True)
    columns = (what, BarColumn(20), MofNCompleteColumn(table_column=Column(no_wrap=True)), note)
    bars = Progress(*columns, console=console, auto_refresh=False, transient=True, expand=True)
    bars.start()
    return bars


def time_left(seconds: float | None) -> str:
    """Seconds as ``about 2 min left``; "" where they are unknown."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    return f"about {seconds / 60:.0f} min left" if seconds < 5400 else f"about {seconds / 3600:.1f} h left"
