"""What `flows.watch` has announced and no run has decided yet; an announcement that came to nothing is made again.

``.safegene/announced.json`` holds the open announcements. One is closed by a record of its target that is newer and no
error. It is made again where such a record is an error, or where an hour passed without any: an event or a run was
lost. After `TRIES` it is left to people.
"""

import time
from contextlib import suppress
from pathlib import Path

from rich.markup import escape

from flows.tasks import console
from safegene.errors import SafegeneError
from safegene.ledger import open_ledger
from safegene.ledger.promotion import newest_record
from safegene.text import visible
from safegene.workspace.atomic import write_file
from safegene.workspace.layout import Workspace
from safegene.workspace.params import Targets
from safegene.workspace.parsing import Strict, parse_json

TRIES = 3
LOST_SECONDS = 3600.0


class Announcement(Strict):
    """An open announcement.

    Attributes:
        fingerprint: of the target's content.
        record: number of the target's newest record at that time; -1 for none, None where it could not be read.
        seconds: when it was last made, in seconds since 1970.
        tries: how often it was made.
    """

    fingerprint: str
    record: int | None
    seconds: float
    tries: int


class Announcements(Strict):
    """The content of ``announced.json``: target -> its open announcement."""

    targets: dict[str, Announcement] = {}


def note_announcement(ws: Workspace, name: str, fingerprint: str) -> None:
    """Note that a target is announced now; to be called before the event is emitted."""
    noted = _read(ws)
    old = noted.get(name)
    tries, number = old.tries + 1 if old and old.fingerprint == fingerprint else 1, None
    with suppress(SafegeneError):  # the announcement must be made although the ledger cannot be read now
        number, _ = _newest(ws, name)
    made = Announcement(fingerprint=fingerprint, record=number, seconds=time.time(), tries=tries)
    _write(ws, {**noted, name: made})


def to_announce_again(ws: Workspace, targets: Targets) -> list[str]:
    """Targets whose announcement came to nothing; closed announcements are forgotten. A broken ledger gives none."""
    noted, again, still_open = _read(ws), list[str](), dict[str, Announcement]()
    for name, made in noted.items():
        entry = targets.targets.get(name)
        if entry is None or entry.fingerprint != made.fingerprint:
            continue
        try:
            number, outcome = _newest(ws, name)
        except SafegeneError as error:
            why = escape(visible(error.message))
            console.print(f"  [yellow]not known[/] whether {name} was decided: {why}", soft_wrap=True)
            still_open[name] = made
            continue
        tried = made.record is not None and number > made.record
        if tried and outcome != "error":
            continue
        still_open[name] = made
        if not tried and time.time() - made.seconds < LOST_SECONDS:
            continue
        if made.tries < TRIES:
            again.append(name)
        else:
            said = f"{name} after {made.tries} runs without a decision; next: safegene run {name}"
            console.print(f"  [yellow]not announced again[/] {said}", soft_wrap=True)
    if still_open != noted:
        _write(ws, still_open)
    return again


def _newest(ws: Workspace, name: str) -> tuple[int, str]:
    """Number and outcome of the target's newest record; (-1, "") for none."""
    params = ws.params.promote
    record = newest_record(open_ledger(params, ws.root), name, params.channel)
    return (record.sequence, record.outcome) if record else (-1, "")


def _file(ws: Workspace) -> Path:
    return ws.root / ".safegene" / "announced.json"


def _read(ws: Workspace) -> dict[str, Announcement]:
    path = _file(ws)
    return dict(parse_json(Announcements, path.read_bytes(), where=str(path)).targets) if path.is_file() else {}


def _write(ws: Workspace, noted: dict[str, Announcement]) -> None:
    write_file(_file(ws), Announcements(targets=noted).model_dump_json() + "\n")
