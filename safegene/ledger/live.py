"""Questions to a chain that change nothing: what is live, what was live, what a record rests on, what is revoked.

A record rests on every digest that its artefacts and fields name. A revocation names one digest; every record that
rests on it is revoked.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from securesystemslib.signer import Signer

from safegene.errors import LedgerError, PreconditionFailed
from safegene.ledger.attempts import Attempt, earlier_attempts
from safegene.ledger.chain import TRIES, Ledger
from safegene.ledger.memory import RevokedDigest
from safegene.ledger.pointers import Pointer, Stored, Tip, channel_key
from safegene.ledger.record import Record
from safegene.ledger.snapshot import Head, Reading, attempts_on, read_state, revoked_by, write_snapshot
from safegene.ledger.trust import signed_in_time, why_untrusted
from safegene.workspace.digest import canonical_json, is_digest

IN_FLIGHT = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Seconds for which a reader waits for a writer that has linked a record and has not moved the pointer yet."""


@dataclass(frozen=True)
class LiveRecord:
    """What is live for a target on a channel, as the chain says.

    Attributes:
        pointer: the channel pointer; None where it is missing.
        record: the record that put it live.
        ledger: where the records before it are read.
        revoked: why the record must not be relied on; empty where nothing that it rests on is revoked.
        unsettled: why the pointer is not that of the record: a writer was interrupted, or somebody set the pointer
            back; empty where it is. Then nothing is served until a writer has moved the pointer on.
        settled: why it had not been, where `live_record` has just moved it on.
    """

    pointer: Stored[Pointer] | None
    record: Record
    ledger: Ledger
    revoked: str = ""
    unsettled: str = ""
    settled: str = ""

    @property
    def release(self) -> str:
        """Digest of the release that is live."""
        return str(self.record.release)

    @cached_property
    def was_live(self) -> tuple[Record, ...]:
        """The live record and every record that was live before it, newest first."""
        records = [self.record]
        while earlier := records[-1].replaces:
            records.append(self._earlier(earlier, than=records[-1]))
        return tuple(records)

    @property
    def predecessor(self) -> Record | None:
        """The promotion whose release was live before the live release was first promoted; None for none."""
        promotion = self._promotion(self.record)
        return self._promotion(self._earlier(promotion.replaces, than=promotion)) if promotion.replaces else None

    @property
    def rolled_back(self) -> frozenset[str]:
        """Digests of the candidates that were rolled back since the last promotion."""
        steps, record = list[Record](), self.record
        while record.outcome == "rollback" and record.replaces:
            record = self._earlier(record.replaces, than=record)
            steps.append(record)
        return frozenset(earlier.artefacts.get("candidate", "") for earlier in steps)

    def _promotion(self, record: Record) -> Record:
        while record.outcome == "rollback" and record.restores:
            record = self._earlier(record.restores, than=record)
        return record

    def _earlier(self, digest: str, *, than: Record) -> Record:
        """A record that a later one names; numbers fall, so that no links form a circle."""
        record = self.ledger.read(digest)
        if record.sequence >= than.sequence:
            raise LedgerError(f"expected a record before number {than.sequence}, got {record.sequence}, in {digest}")
        return record


def live_record(ledger: Ledger, target: str, channel: str, *, signer: Signer | None = None) -> LiveRecord | None:
    """What is live for a target on a channel, as the chain says; None when nothing is.

    Args:
        ledger: the ledger.
        target: the target's name.
        channel: the channel's name.
        signer: of a writer, which stores the snapshot that is due and moves on a pointer that was left behind.

    Raises:
        LedgerError: the chain is broken or was set back, or the pointer is malformed or names something that never
            went live.
    """
    settled = ""
    for _ in range(TRIES):
        pointer = ledger.pointer(channel, target)  # before the state: so it is never newer than the state
        reading = read_state(ledger)
        if signer:
            write_snapshot(ledger, reading, signer)
        live = live_in(ledger, reading, revocations(ledger, reading), pointer, channel=channel, target=target)
        if live is None or not live.unsettled or signer is None:
            return replace(live, settled=settled) if live else None
        with suppress(PreconditionFailed):
            ledger.publish(live.record, pointer)
            settled = live.unsettled
    raise LedgerError(f"expected to move the pointer of {target} in {TRIES} tries, got another writer first each time")


def settled_record(ledger: Ledger, target: str, channel: str) -> LiveRecord | None:
    """`live_record`, after a wait for a writer that is between its record and its pointer."""
    for seconds in (*IN_FLIGHT, 0.0):
        live = live_record(ledger, target, channel)
        if live is None or not live.unsettled:
            break
        time.sleep(seconds)
    return live


def earlier_candidates(ledger: Ledger, attempt: Attempt) -> tuple[str, ...]:
    """The earlier attempts on a fine-tune, see `safegene.ledger.attempts.earlier_attempts`.

    Raises:
        LedgerError: the chain is broken.
    """
    reading = read_state(ledger)
    if reading is None or not attempt.fine_tune:
        return ()
    return earlier_attempts(attempts_on(ledger, reading, attempt.fine_tune), attempt)


def took_effect(ledger: Ledger, record: Record) -> tuple[bool, int | None]:
    """Whether a publishing record on the chain took effect, and the number of the record that was live after it."""
    reading = read_state(ledger, at=Tip(record=record.digest, sequence=record.sequence))
    head = reading.head(record.channel, record.target) if reading else None
    return (head.record == record.digest, head.sequence) if head else (False, None)


def live_in(
    ledger: Ledger,
    reading: Reading | None,
    revoked: Sequence[RevokedDigest],
    pointer: Stored[Pointer] | None,
    *,
    channel: str,
    target: str,
) -> LiveRecord | None:
    """What is live in a state that was read; see `live_record`.

    Args:
        ledger: where the live record is read.
        reading: the state.
        revoked: the revocations, from `revocations`.
        pointer: the channel pointer, read before the state.
        channel: the channel's name.
        target: the target's name.
    """
    head = reading.head(channel, target) if reading else None
    if head is None:
        if pointer:
            raise _never_live(ledger, pointer.content, channel=channel, target=target)
        return None
    record = ledger.read(head.record)
    unsettled = _unsettled(ledger, head, record, pointer, channel=channel, target=target)
    why = why_revoked(revoked, digests_of_record(record)) or why_untrusted(ledger, record, revoked)
    return LiveRecord(pointer, record, ledger, why, unsettled)


def _unsettled(
    ledger: Ledger, head: Head, record: Record, pointer: Stored[Pointer] | None, *, channel: str, target: str
) -> str:
    if pointer and pointer.content == head.pointer:
        return ""
    if pointer and pointer.content.sequence >= head.sequence:
        raise _never_live(ledger, pointer.content, channel=channel, target=target)
    if pointer:
        _require_published(ledger, pointer.content, channel=channel, target=target)
    what = "rolled {} back" if record.outcome == "rollback" else "promoted {}"
    got = f"a pointer to record {pointer.content.sequence}" if pointer else "no pointer"
    return (
        f"expected a pointer to record {head.sequence}, which {what.format(target)} on {channel}, got {got}: its "
        f"writer was interrupted, or the pointer was set back, in {ledger.where(channel_key(channel, target))}"
    )


def _never_live(ledger: Ledger, pointer: Pointer, *, channel: str, target: str) -> LedgerError:
    """The error for a pointer to something that the chain does not say was live."""
    _require_published(ledger, pointer, channel=channel, target=target)
    return LedgerError(
        f"expected a pointer to a record on the chain that went live, got record {pointer.sequence}, which was "
        f"superseded or is not on the chain, in {ledger.where(channel_key(channel, target))}"
    )


def _require_published(ledger: Ledger, pointer: Pointer, *, channel: str, target: str) -> None:
    """Check that a pointer and the record that it names agree.

    Raises:
        LedgerError: the record cannot be read, is of another channel, target or release, or has no release.
    """
    where = ledger.where(channel_key(channel, target))
    try:
        record = ledger.read(pointer.record)
    except LedgerError as error:
        raise LedgerError(f"{error.message}, which is named in {where}") from None
    named = (record.channel, record.target, record.release, record.sequence)
    if named != (channel, target, pointer.release, pointer.sequence):
        raise LedgerError(
            f"expected a record that publishes {pointer.release} for {target} on {channel}, got a record of outcome "
            f"{record.outcome!r} for {record.target} on {record.channel}, in {where}"
        )


def revocations(ledger: Ledger, reading: Reading | None = None) -> tuple[RevokedDigest, ...]:
    """All signed revocations, newest first, whether they are on the chain or not.

    A revocation holds although its writer stopped before linking it, or somebody set the tip back: its copy is in the
    store, or in this machine's memory. Copies that cannot be read are skipped here; `safegene.ledger.audit` reports
    them.

    Args:
        ledger: the ledger.
        reading: its state; read where it is not given.
    """
    reading = reading or read_state(ledger)
    found = list(reading.now.revocations) if reading else []
    linked = {revoked.record for revoked in found}
    for digest in ledger.records("revocations"):
        with suppress(LedgerError):
            if digest not in linked and (record := ledger.read(digest, kind="revocations")).outcome == "revocation":
                found.append(revoked_by(record))
    known = ledger.memory.recall(reading.now.ledger) if ledger.memory and reading else None
    revokes = {revoked.revokes for revoked in found}
    found += [entry for entry in (known.revoked if known else ()) if entry.revokes not in revokes]
    sound = (entry for entry in found if signed_in_time(entry, ledger.keys))
    return tuple(sorted(sound, key=lambda entry: -entry.sequence))


def sound_releases(live: LiveRecord, revoked: Sequence[RevokedDigest]) -> tuple[Record, ...]:
    """The records that were live before, of other releases, newest first, that can be put live again."""
    return tuple(
        record
        for record in live.was_live[1:]
        if record.release != live.release
        and not why_revoked(revoked, digests_of_record(record))
        and not why_untrusted(live.ledger, record, revoked)
    )


def way_out(live: LiveRecord, revoked: Sequence[RevokedDigest]) -> str:
    """The command that leads from what is live to something sound: a rollback that works, or another candidate."""
    target, channel = live.record.target, live.record.channel
    for record in sound_releases(live, revoked):
        return f"`safegene rollback {target} --channel {channel} --to {record.sequence}`"
    if live.revoked:
        return (
            f"no earlier release of {target} on {channel} is sound, so nothing is served; replace what was revoked "
            f"(`safegene audit show {live.record.sequence}` names what the release rests on), then "
            f"`safegene run {target}`"
        )
    return f"no other release of {target} on {channel} is sound; another candidate goes live by `safegene run {target}`"


def find_record(name: str, records: Sequence[Record]) -> Record | None:
    """The record with that sequence number, or with a digest (its own or its release's) that starts with ``name``.

    At least 8 digits of a digest are needed; None where no record fits.
    """
    if name.isdecimal() and len(name) < 8:
        return next((record for record in records if record.sequence == int(name)), None)
    digits = name.removeprefix("sha256:")
    named = (r for r in records if any(f":{digits}" in digest for digest in (r.digest, str(r.release))))
    return next(named, None) if len(digits) >= 8 else None


def digests_named(content: Mapping[str, Any]) -> frozenset[str]:
    """Every digest that occurs anywhere in plain JSON values."""
    return frozenset(text for text in canonical_json(dict(content)).decode().split('"') if is_digest(text))


def digests_of_record(record: Record) -> frozenset[str]:
    """Every digest that a record rests on: its release, and all digests in its artefacts and fields.

    The fields ``chain`` and ``channel`` are left out: they name neighbouring records only.
    """
    return digests_named(record.predicate.model_dump(exclude={"chain", "channel"}))


def why_revoked(revoked: Sequence[RevokedDigest], used: frozenset[str]) -> str:
    """Why one of these digests is revoked, as one sentence; empty where none is."""
    for entry in revoked:
        if entry.revokes in used:
            return f"record {entry.sequence} revoked {entry.revokes}: {entry.reason}"
    return ""
