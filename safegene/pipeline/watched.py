"""What the watch found of each target, and what became of it: one row for each content, in the ledger's store.

``watched/<target>`` holds the rows of a target, the newest last. A row is *announced* by the watch, *running* while a
run works on it, then *decided*, *failed*, or *superseded* by a newer content that was found before it was decided. A
failed one is announced again after a pause that doubles (without one where its run was killed), `TRIES` times in all;
then it is left to people.

A row is known by its *work*, the digest of what the decision depends on. An event starts a run only while the row of
its work is *announced*, however often it comes. Only a run that followed the row to its end decides it: a record that
appeared meanwhile may be of an earlier content, or a rollback. The object is replaced conditionally, so of two runs one
begins. Rows of a ledger inside of the workspace are in ``.safegene``, since they are no part of it.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from safegene.errors import PreconditionFailed, SafegeneError, StoreError
from safegene.ledger.chain import Ledger, open_ledger
from safegene.ledger.promotion import newest_record
from safegene.ledger.store import LocalStore, ObjectMissing, Store
from safegene.workspace.digest import canonical_json, digest_json
from safegene.workspace.fields import Digest
from safegene.workspace.layout import Workspace, cache_folder
from safegene.workspace.manifest import input_digest
from safegene.workspace.params import Targets
from safegene.workspace.parsing import Strict, parse_json

TRIES = 5
PAUSE_SECONDS = 300.0
"""From a failure to the next try; doubled by each further failure."""
LOST_SECONDS = 3600.0
"""After which an announcement that no run began is repeated; the run of either may begin, since a queue can be long."""
BEAT_SECONDS = 30.0
MISSED_BEATS = 4
"""Signs of life that a run may leave out before its work is another one's."""
KEPT = 100
FAMILY = ("family", "degrade", "extract", "compress", "select")
"""Sections of ``params.yaml`` that the safety vector depends on."""


class Discovery(Strict):
    """One content of a target that the watch found.

    Attributes:
        work: digest of what the decision depends on.
        fingerprint: of the target's content.
        found: when it was found first, in ISO 8601.
        state: what became of it.
        since: when it came into that state, or its run last gave a sign of life; seconds since 1970.
        tries: how often it was announced.
        record: number of the target's newest record when it was decided; None before, and where nobody knows it.
        run: id of the run that works on it.
        why: why it failed, or what superseded it.
        killed: whether it failed since its run fell silent: it is tried again without a pause.
    """

    work: Digest
    fingerprint: str
    found: str
    state: Literal["announced", "running", "decided", "failed", "superseded"]
    since: float
    tries: PositiveInt = 1
    record: int | None = None
    run: str = ""
    why: str = ""
    killed: bool = False

    @property
    def is_open(self) -> bool:
        """Whether it is neither decided nor superseded."""
        return self.state in ("announced", "running", "failed")

    @property
    def due(self) -> float | None:
        """When it is announced again, in seconds since 1970; None where it is not."""
        if self.state not in ("announced", "failed") or self.tries >= TRIES:
            return None
        if self.state == "announced":
            return self.since + LOST_SECONDS
        return self.since if self.killed else self.since + PAUSE_SECONDS * 2.0 ** (self.tries - 1)

    @property
    def given_up(self) -> str:
        """Why nothing is announced any more although nothing is decided; "" otherwise."""
        if self.tries < TRIES or self.state not in ("announced", "failed"):
            return ""
        if self.state == "failed":
            return f"{TRIES} tries failed ({self.why})"
        lost = time.time() - self.since > LOST_SECONDS
        return f"it was announced {TRIES} times, and no run began" if lost else ""

    def now(self, **change: object) -> "Discovery":
        """It, with another state from now on."""
        return self.model_copy(update={"since": time.time(), **change})


class Discoveries(Strict):
    """The content of ``watched/<target>``."""

    target: str
    discoveries: tuple[Discovery, ...] = ()
    writes: NonNegativeInt = 0


Rows = tuple[Discovery, ...]


def discovery_work(ws: Workspace, targets: Targets, name: str) -> str:
    """The digest of what a decision on a target depends on, as far as it is known before anything is fetched."""
    params, entry = ws.params, targets.targets[name]
    task = ws.tasks / f"{entry.task}.jsonl"
    sections = {section: getattr(params, section).model_dump(mode="json") for section in FAMILY}
    policy = {name: getattr(params, name).model_dump(mode="json") for name in ("calibrate", "evaluate", "gate")}
    return digest_json(
        {
            "target": [name, params.promote.channel],
            "checkpoint": [entry.source, entry.fingerprint],
            "vector": [targets.aligned, targets.vector, dict(targets.degraded), sections],
            "policy": policy,
            "suite": [input_digest(path) if path.exists() else None for path in (ws.prompts, task)],
        }
    )


def read_discoveries(ws: Workspace, target: str) -> Rows:
    """The rows of a target, the oldest first.

    Raises:
        StoreError: the store does not answer.
        FormatError: the object is malformed.
    """
    return _Log.of(ws).read(target)[0].discoveries


def to_announce(ws: Workspace, before: Targets, after: Targets) -> dict[str, Discovery]:
    """The targets that must be announced now, with their rows, which are written already.

    Those are contents that are new since ``before``, and open ones whose try failed or was lost, when their pause is
    over. So a watch that is killed after this call has announced them late, not never.

    Raises:
        StoreError: the store does not answer.
    """
    log, announced = _Log.of(ws), dict[str, Discovery]()
    for name, entry in after.targets.items():
        old = before.targets.get(name)
        changed = old is None or old.fingerprint != entry.fingerprint
        seen = _Seen(discovery_work(ws, after, name), entry.fingerprint, changed)
        earlier, rows = log.update(name, seen.follow)
        latest = rows[-1] if rows else None
        if latest and latest.state == "announced" and (not earlier or earlier[-1] != latest):
            announced[name] = latest
    return announced


@dataclass(frozen=True)
class _Seen:
    """What one look sees of a target.

    Attributes:
        work: digest of what the decision depends on.
        pin: fingerprint of the content.
        changed: whether the workspace did not know that content.
    """

    work: str
    pin: str
    changed: bool

    def follow(self, rows: Rows) -> Rows:
        """The rows after this look."""
        latest = rows[-1] if rows else None
        if latest is None or latest.work != self.work:
            if self.changed:
                return (*_superseded(rows, self.pin), self._made())
            if latest is None or latest.fingerprint != self.pin:  # another workspace has found a newer content
                return rows
        if not latest.is_open:
            return rows
        followed = _or_failed(latest)
        if followed.due is not None and time.time() >= followed.due:
            followed = followed.now(state="announced", tries=followed.tries + 1, work=self.work)
        return (*rows[:-1], followed)

    def _made(self) -> Discovery:
        return Discovery(
            work=self.work,
            fingerprint=self.pin,
            found=datetime.now(UTC).isoformat(timespec="seconds"),
            state="announced",
            since=time.time(),
        )


def _superseded(rows: Rows, pin: str) -> Rows:
    why = f"superseded by {pin}"
    return tuple(row.now(state="superseded", why=why) if row.is_open else row for row in rows)


def _or_failed(row: Discovery) -> Discovery:
    """The row, *failed* where its run was silent for too long."""
    silent = time.time() - row.since
    if row.state == "running" and silent > MISSED_BEATS * BEAT_SECONDS:
        why = f"its run {row.run} gave no sign of life for {silent:.0f} s"
        return row.now(state="failed", why=why, killed=True)
    return row


@dataclass
class Following:
    """A run's work on a discovery.

    Attributes:
        refused: why the run must not begin; "" where it may.
        outcome: of the run; "error" until it has another one.
        why: what went wrong.
    """

    refused: str = ""
    outcome: str = "error"
    why: str = "its run was interrupted"
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)


@contextmanager
def following(ws: Workspace, target: str, run: str, event: str = "") -> Iterator[Following]:
    """Follow a run of a target: it is *running* in the block, with signs of life, and *decided* or *failed* after it.

    A run that no discovery belongs to, and a store that does not answer, keep nobody from running by hand.

    Args:
        ws: the workspace.
        target: the target's name.
        run: id of the run.
        event: the work that an event named; "" for a run that no event started, which always begins.

    Raises:
        StoreError: an event started the run, and the store does not answer.
    """
    followed, log = Following(), _Log.of(ws)
    try:
        work = event or discovery_work(ws, ws.targets, target)
        _begin(log, target, followed, work, run, must_be_free=bool(event))
    except SafegeneError:
        if event:
            raise
        work = ""
    if followed.refused or not work:
        yield followed
        return
    beating = threading.Thread(target=_beat, args=(log, target, work, run, followed), daemon=True)
    beating.start()
    try:
        yield followed
    except SafegeneError as error:
        followed.why = error.summary
        raise
    finally:
        followed._stop.set()
        beating.join()
        with suppress(SafegeneError):  # the run's own error must not be hidden; the watch finds out
            _end(log, target, followed, work, run)


def _begin(log: "_Log", target: str, followed: Following, work: str, run: str, *, must_be_free: bool) -> None:
    def take(rows: Rows) -> Rows:
        followed.refused, latest = "", rows[-1] if rows else None
        if must_be_free:
            followed.refused = _not_free(rows, work)
        if followed.refused or latest is None or latest.work != work or not latest.is_open:
            return rows
        return (*rows[:-1], latest.now(state="running", run=run, why="", killed=False))

    log.update(target, take)


def _not_free(rows: Rows, work: str) -> str:
    """Why an event that names a work starts nothing; "" where it may start."""
    row = next((row for row in reversed(rows) if row.work == work), None)
    if row is None:
        return ""
    if row.state == "decided":
        return f"decided already, by record {row.record}"
    if row.state == "superseded":
        return row.why
    if row.state == "running":
        return f"run {row.run} works on it; where that has died, the watch announces the work again"
    if row.state == "failed":
        return f"try {row.tries} of {TRIES} failed ({row.why}), and the watch has not announced the work again"
    return ""


def _beat(log: "_Log", target: str, work: str, run: str, followed: Following) -> None:
    while not followed._stop.wait(BEAT_SECONDS):
        with suppress(SafegeneError):  # the next one may succeed
            log.update(target, lambda rows: _of_run(rows, work, run, lambda row: row.now()))


def _end(log: "_Log", target: str, followed: Following, work: str, run: str) -> None:
    decided = {"state": "decided", "record": log.newest(target), "why": ""}
    change = {"state": "failed", "why": followed.why} if followed.outcome == "error" else decided
    log.update(target, lambda rows: _of_run(rows, work, run, lambda row: row.now(**change)))


def _of_run(rows: Rows, work: str, run: str, change: Callable[[Discovery], Discovery]) -> Rows:
    """The rows, with the change in the row that the run works on; another run may have taken it over."""
    return tuple(change(row) if (row.work, row.run, row.state) == (work, run, "running") else row for row in rows)


@dataclass
class _Log:
    """The rows of all targets of a workspace, in its store."""

    ledger: Ledger
    channel: str
    store: Store

    @classmethod
    def of(cls, ws: Workspace) -> "_Log":
        params = ws.params.promote
        ledger = open_ledger(params, ws.root, cache=cache_folder() / "records")
        store = ledger.store
        if isinstance(store, LocalStore) and store.root.resolve().is_relative_to(ws.root.resolve()):
            store = LocalStore(ws.root / ".safegene")
        return cls(ledger, params.channel, store)

    def newest(self, target: str) -> int | None:
        """Number of the target's newest record; None for none, and where the ledger cannot be read."""
        with suppress(SafegeneError):
            record = newest_record(self.ledger, target, self.channel)
            return record.sequence if record else None
        return None

    def read(self, target: str) -> tuple[Discoveries, str | None]:
        """The rows, and the etag of their object; None where there is none."""
        key = f"watched/{target}"
        try:
            data, etag = self.store.get(key)
        except ObjectMissing:
            return Discoveries(target=target), None
        return parse_json(Discoveries, data, where=f"{self.store.uri}/{key}"), etag

    def update(self, target: str, change: Callable[[Rows], Rows]) -> tuple[Rows, Rows]:
        """Replace the rows by what ``change`` makes of them, again where another writer was first; before and after."""
        for attempt in range(20):
            present, etag = self.read(target)
            rows = change(present.discoveries)
            if rows == present.discoveries:
                return rows, rows
            new = Discoveries(target=target, discoveries=rows[-KEPT:], writes=present.writes + 1)
            data, key = canonical_json(new.model_dump(mode="json")), f"watched/{target}"
            try:
                if etag is None:
                    self.store.put_if_absent(key, data)
                else:
                    self.store.put_if_match(key, data, etag)
            except PreconditionFailed:
                time.sleep(0.05 * attempt)
                continue
            return present.discoveries, rows
        raise StoreError(f"expected to write watched/{target} in {self.store.uri}, got that others wrote it each time")
