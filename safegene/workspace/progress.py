"""Progress of a long loop: a line of the log that also carries its numbers, so that a terminal can draw a bar."""

import logging
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a loop is.

    Attributes:
        what: what is done, such as ``replies of candidate, harmful``.
        done: how many steps are done.
        total: how many there are, or may be at most.
        note: what else is known, such as a loss; "" for nothing.
        overall: whether other loops run inside of it, whose progress says less.
    """

    what: str
    done: int
    total: int
    note: str = ""
    overall: bool = False

    @property
    def words(self) -> str:
        """The numbers and the note as text."""
        return f"{self.what}: {self.done:,} of {self.total:,}{f', {self.note}' if self.note else ''}"


def log_progress(
    log: logging.Logger, what: str, done: int, total: int, note: str = "", *, overall: bool = False
) -> None:
    """Log how far a loop is, at level INFO; the record's attribute ``progress`` holds the `Progress`.

    To be called after every step, and before the first one with 0: whoever shows the log shows few of these lines.
    """
    progress = Progress(what, done, total, note, overall)
    log.info("%s", progress.words, extra={"progress": progress})
