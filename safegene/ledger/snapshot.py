"""The state of a chain: what is live, what is revoked, what was tried; and signed snapshots of it.

The state is what the records say, applied in order. Reading a long chain for it would cost more with every record, so
every `EVERY` records a writer stores a snapshot: the state up to there, signed by a pinned key, named by the record
that it ends with. A reader walks back to the newest record with a sound snapshot and applies the later records to it.

A snapshot can hide nothing from an audit, which reads every record and compares each snapshot with them. It is found
only through the records that follow it, so an old one cannot take the place of a newer one. A missing or malformed
snapshot, or one that no active pinned key signed, is passed over, and the walk goes on.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import Signer

from safegene.errors import FormatError, LedgerError, PreconditionFailed
from safegene.ledger.attempts import DECIDED, Tried, tried_by
from safegene.ledger.chain import Ledger
from safegene.ledger.memory import Anchor, RevokedDigest
from safegene.ledger.pins import retired_from
from safegene.ledger.pointers import SEEN, TIP, Pointer, Tip, channel_name, object_key, record_key
from safegene.ledger.record import EVERY as ALL
from safegene.ledger.record import PUBLISHING, Record
from safegene.ledger.store import ObjectMissing
from safegene.workspace.atomic import write_file
from safegene.workspace.digest import PREFIX, canonical_json, digest_json, strict_json
from safegene.workspace.fields import Digest
from safegene.workspace.parsing import parse, parse_json

EVERY = 16
"""Records from one snapshot to the next."""
PAYLOAD = "application/vnd.safegene.snapshot+json"
ATTEMPTS = (*DECIDED, "override", "pending", "error", "superseded")
log = logging.getLogger(__name__)


class Head(Pointer):
    """What the chain says is live for a target on a channel.

    Attributes:
        before: what was live before; kept only where a record of an earlier version could still be superseded.
    """

    before: Pointer | None = None

    @property
    def pointer(self) -> Pointer:
        """What the channel pointer must hold."""
        return Pointer(record=self.record, release=self.release, sequence=self.sequence)


class ChainState(Tip):
    """The state of a chain up to a record, as a snapshot holds it.

    Attributes:
        ledger: id of the ledger.
        live: ``channel/target`` -> what is live.
        last: ``channel/target`` -> the newest record.
        revocations: in the order of the chain; those off the chain that the first snapshot found come first.
        attempts: first two digits of a fine-tune's digest -> the object with the attempts on these fine-tunes.
    """

    schema_: Literal["safegene/snapshot/v1"] = Field("safegene/snapshot/v1", alias="schema")
    ledger: Digest
    live: dict[str, Head]
    last: dict[str, Digest]
    revocations: tuple[RevokedDigest, ...]
    attempts: dict[str, Digest]


Attempts = dict[str, list[Tried]]
"""Content of a fine-tune -> what was tried on it, oldest first, each once."""


@dataclass
class Folded:
    """A state to which records are applied.

    Attributes:
        at: the last record applied; None before the first.
        live: see `ChainState`, as ``last``, ``revocations`` and ``pages`` (its ``attempts``).
        fresh: attempts that are not in ``pages`` yet.
        effective: publishing records applied here that took effect.
    """

    at: Record | None = None
    ledger: str = ""
    live: dict[str, Head] = field(default_factory=dict)
    last: dict[str, str] = field(default_factory=dict)
    revocations: list[RevokedDigest] = field(default_factory=list)
    pages: dict[str, str] = field(default_factory=dict)
    fresh: Attempts = field(default_factory=dict)
    effective: set[str] = field(default_factory=set)

    @classmethod
    def resume(cls, state: ChainState, at: Record) -> Self:
        """The state of a snapshot, to go on from."""
        known = (dict(state.live), dict(state.last), list(state.revocations), dict(state.attempts))
        return cls(at, state.ledger, *known)

    def copy(self) -> "Folded":
        """An independent copy."""
        fresh = {key: list(found) for key, found in self.fresh.items()}
        known = (dict(self.live), dict(self.last), list(self.revocations), dict(self.pages), fresh)
        return Folded(self.at, self.ledger, *known, set(self.effective))

    def apply(self, record: Record) -> None:
        """Apply the next record of the chain."""
        key = channel_name(record.channel, record.target)
        self.at, self.ledger = record, self.ledger or record.ledger or record.digest
        if record.outcome in PUBLISHING:
            self._publish(record, key)
        elif record.outcome == "superseded":
            self._supersede(record, key)
        elif record.outcome == "revocation":
            self.revocations.append(revoked_by(record))
        if record.target != ALL:
            self.last[key] = record.digest
        if tried := tried_by(record):
            fine_tune, attempt = tried
            found = self.fresh.setdefault(fine_tune, [])
            if attempt not in found:
                found.append(attempt)

    def assume(self, record: Record) -> None:
        """Before applying the first known record of a channel to an unknown state: what it replaces was live."""
        key = channel_name(record.channel, record.target)
        if record.outcome in PUBLISHING and key not in self.live and record.replaces:
            self.live[key] = Head(record=record.replaces, release=str(record.release), sequence=0)

    def digests_of_pages(self, fine_tunes: Iterable[str]) -> dict[str, str]:
        """First two digits -> digest of the object with these attempts, for a state read from the first record on."""
        buckets = {_bucket(fine_tune) for fine_tune in fine_tunes}
        return {
            bucket: digest_json(plain_page({k: found for k, found in self.fresh.items() if _bucket(k) == bucket}))
            for bucket in buckets
            if any(_bucket(key) == bucket for key in self.fresh)
        }

    def state(self, pages: Mapping[str, str]) -> ChainState:
        """The state as a snapshot holds it, with the attempts in ``pages``."""
        assert self.at is not None
        return ChainState(
            record=self.at.digest,
            sequence=self.at.sequence,
            ledger=self.ledger,
            live=self.live,
            last=self.last,
            revocations=tuple(self.revocations),
            attempts=dict(pages),
        )

    def _publish(self, record: Record, key: str) -> None:
        """A record takes effect if it replaces what is live; of earlier versions, the newest always does."""
        head = self.live.get(key)
        legacy = record.ledger is None
        if record.replaces == (head.record if head else None) or legacy:
            before = head.pointer if head and legacy else None
            self.live[key] = Head(
                record=record.digest, release=str(record.release), sequence=record.sequence, before=before
            )
            self.effective.add(record.digest)

    def _supersede(self, record: Record, key: str) -> None:
        """Writers of earlier versions found out only afterwards that they had lost."""
        head = self.live.get(key)
        if head and head.before and head.record == record.replaces:
            before = head.before
            self.effective.discard(head.record)
            self.live[key] = Head(record=before.record, release=before.release, sequence=before.sequence)


@dataclass(frozen=True)
class Reading:
    """A chain's state as it was read.

    Attributes:
        now: the state.
        due: the state at the newest record that should have a snapshot and has none; None where none is missing.
    """

    now: Folded
    due: Folded | None

    @property
    def newest(self) -> Record:
        """The newest record."""
        assert self.now.at is not None
        return self.now.at

    @property
    def channels(self) -> tuple[tuple[str, str], ...]:
        """Every (channel, target) on which something is live."""
        names = (name.partition("/") for name in self.now.live)
        return tuple((channel, target) for channel, _, target in names)

    def head(self, channel: str, target: str) -> Head | None:
        """What the chain says is live."""
        return self.now.live.get(channel_name(channel, target))


def read_state(ledger: Ledger, *, at: Tip | None = None) -> Reading | None:
    """The state of the chain up to its tip, or up to ``at``; None for an empty ledger.

    With a memory, the newest record and the revocations are remembered.

    Raises:
        LedgerError: a link is broken, or the chain does not hold a record that was seen before.
    """
    if at is None:
        found = ledger.start()
        if found is None:
            return None
        start, anchors = found
    else:
        start, anchors = at, ()
    later, base = _walk_back(ledger, start, anchors)
    now, due = base or Folded(revocations=_unlinked_revocations(ledger, later)), None
    for record in reversed(later):
        now.apply(record)
        if record.sequence % EVERY == 0 and record.sequence:
            due = now.copy()
    reading = Reading(now, due)
    if at is None:
        _remember(ledger, reading, anchors)
    return reading


def _walk_back(ledger: Ledger, start: Tip, anchors: Iterable[Anchor]) -> tuple[list[Record], Folded | None]:
    """The records that follow the newest usable snapshot, newest first; and that snapshot, None for none."""
    open_anchors = {anchor.sequence: anchor for anchor in sorted(anchors, key=lambda anchor: anchor.source)}
    for anchor in anchors:
        if anchor.sequence > start.sequence or open_anchors[anchor.sequence].record != anchor.record:
            raise ledger.set_back(anchor)
    later = list[Record]()
    for record in ledger.back_from(start, named_by=ledger.where(TIP)):
        found = open_anchors.pop(record.sequence, None)
        if found and found.record != record.digest:
            raise ledger.set_back(found)
        if not open_anchors and record.sequence and record.sequence % EVERY == 0:
            state = read_snapshot(ledger, record)
            if state:
                return later, Folded.resume(state, record)
        later.append(record)
    return later, None


def _unlinked_revocations(ledger: Ledger, chain: Iterable[Record]) -> list[RevokedDigest]:
    """Revocations that earlier versions left in the store without linking them; they hold."""
    linked, found = {record.digest for record in chain}, list[RevokedDigest]()
    for digest in ledger.records():
        with suppress(LedgerError):  # an audit names a record that cannot be read
            if digest not in linked and (record := ledger.read(digest)).outcome == "revocation":
                found.append(revoked_by(record))
    return sorted(found, key=lambda revoked: revoked.sequence)


def _remember(ledger: Ledger, reading: Reading, anchors: Iterable[Anchor]) -> None:
    memory, newest = ledger.memory, reading.newest
    if memory is None:
        return
    known = memory.recall(reading.now.ledger)
    if known is None and not ledger.anchors:
        log.warning(
            "first use of the ledger %s on this machine: its %d records are trusted as they are now, and remembered",
            ledger.store.uri,
            newest.sequence + 1,
        )
    below = tuple(anchor.record for anchor in (*anchors, *ledger.anchors))
    same = known and known.record == newest.digest and set(reading.now.revocations) <= set(known.revoked)
    if same and known and set(below) <= {*known.below, newest.digest}:
        return
    memory.remember(
        reading.now.ledger,
        ledger.store.uri,
        Anchor(newest.digest, newest.sequence, ""),
        below=below,
        revoked=tuple(reading.now.revocations),
    )


def keep_seen(ledger: Ledger, root: Path) -> None:
    """Write the newest record to ``ledger.seen``.

    Raises:
        LedgerError: the chain is broken, or does not hold a record that was seen before.
    """
    if reading := read_state(ledger):
        content = Tip(record=reading.newest.digest, sequence=reading.newest.sequence)
        write_file(root / SEEN, canonical_json(content.model_dump()) + b"\n")


def read_snapshot(ledger: Ledger, record: Record) -> ChainState | None:
    """The snapshot that ends with a record; None, and a warning, where there is none that can be relied on."""
    key = record_key(record.digest, "snapshots")
    try:
        data, _ = ledger.store.get(key)
    except ObjectMissing:
        return None
    try:
        active = tuple(key for key in ledger.keys if retired_from(key) is None)  # a stolen key could sign an old one
        state = open_snapshot(replace(ledger, keys=active), data, where=ledger.where(key))
    except LedgerError as error:
        log.warning("%s: it is passed over, and earlier records are read instead", error.message)
        return None
    return state if (state.record, state.sequence) == (record.digest, record.sequence) else None


def open_snapshot(ledger: Ledger, data: bytes, *, where: str) -> ChainState:
    """The content of a snapshot, signed by a pinned key.

    Raises:
        LedgerError: it is malformed, or no pinned key signed it.
    """
    try:
        envelope = Envelope.from_dict(strict_json(data, where=where))
        envelope.verify(list(ledger.keys), 1)
        if envelope.payload_type != PAYLOAD:
            raise ValueError(f"the payload type {envelope.payload_type!r}")
        return parse_json(ChainState, envelope.payload, where=where)
    except VerificationError:
        raise LedgerError(f"expected a snapshot signed by a pinned key, got none such, in {where}") from None
    except (FormatError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise LedgerError(f"expected a snapshot, got {error}, in {where}") from None


def write_snapshot(ledger: Ledger, reading: Reading | None, signer: Signer) -> None:
    """Store the snapshot that is due, if any; one that is there stays, so that an audit can name it."""
    due = reading.due if reading else None
    if due is None or due.at is None:
        return
    for bucket in {_bucket(fine_tune) for fine_tune in due.fresh}:
        page = _page(ledger, due, bucket)
        due.pages[bucket] = ledger.put_object(plain_page(page))
    state = due.state(due.pages)
    envelope = Envelope(canonical_json(state.model_dump(by_alias=True)), PAYLOAD, {})
    envelope.sign(signer)
    with suppress(PreconditionFailed):
        ledger.store.put_if_absent(record_key(due.at.digest, "snapshots"), canonical_json(envelope.to_dict()))


def attempts_on(ledger: Ledger, reading: Reading, fine_tune: str) -> list[Tried]:
    """What was tried on a fine-tune, under whatever name, oldest first."""
    return _page(ledger, reading.now, _bucket(fine_tune)).get(fine_tune, [])


def _page(ledger: Ledger, folded: Folded, bucket: str) -> Attempts:
    """The attempts on all fine-tunes whose digests start with ``bucket``."""
    page: Attempts = {}
    if bucket in folded.pages:
        where = ledger.where(object_key(folded.pages[bucket]))
        page = parse(Attempts, ledger.object(folded.pages[bucket]), where=where)
    for fine_tune, fresh in folded.fresh.items():
        if _bucket(fine_tune) == bucket:
            page[fine_tune] = list(dict.fromkeys([*page.get(fine_tune, ()), *fresh]))
    return page


def plain_page(page: Mapping[str, Iterable[Tried]]) -> dict[str, Any]:
    """A page as plain JSON values."""
    return {fine_tune: [one.model_dump() for one in tried] for fine_tune, tried in page.items()}


def effective_records(chain: Sequence[Record]) -> frozenset[str]:
    """Digests of the records that took effect.

    Args:
        chain: all records, from the newest to the first.
    """
    folded = Folded()
    for record in reversed(chain):
        folded.apply(record)
    return frozenset(folded.effective)


def revoked_by(record: Record) -> RevokedDigest:
    """What a revocation revokes."""
    return RevokedDigest(
        record=record.digest,
        sequence=record.sequence,
        revokes=str(record.revokes),
        reason=record.reason,
        since=record.predicate.channel.since,
        signers=record.signers,
    )


def _bucket(fine_tune: str) -> str:
    return fine_tune.removeprefix(PREFIX)[:2]
