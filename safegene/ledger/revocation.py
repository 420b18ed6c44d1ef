"""Revocation: record that a digest must not be relied on any more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from securesystemslib.signer import Signer

from safegene.errors import FormatError, SafegeneError
from safegene.ledger.blast import live_records
from safegene.ledger.chain import Ledger
from safegene.ledger.live import LiveRecord, digests_of_record, revocations, sound_releases, way_out
from safegene.ledger.memory import RevokedDigest
from safegene.ledger.record import EVERY, Record, RecordDraft
from safegene.ledger.rollback import record_rollback
from safegene.ledger.snapshot import read_state, write_snapshot
from safegene.workspace.digest import is_digest


@dataclass(frozen=True)
class Revocation:
    """A recorded revocation.

    Attributes:
        record: its record.
        affected: every live release that rests on the revoked digest. It stays live until somebody rolls it back, but
            `safegene.ledger.promotion.resolve_release` refuses it.
        unread: why a channel could not be read, for each such channel; it may hold an affected release.
        ways_out: of each affected release, what leads to something sound; see `safegene.ledger.live.way_out`.
    """

    record: Record
    affected: tuple[LiveRecord, ...]
    unread: tuple[str, ...]
    ways_out: tuple[str, ...] = ()


def record_revocation(
    ledger: Ledger, signer: Signer, digest: str, reason: str, *, fields: Mapping[str, Any]
) -> Revocation:
    """Record that a digest (of a vector, dataset, judge, checkpoint, candidate or release) must not be relied on.

    Raises:
        FormatError: it is no digest, or it is that of a record, on which nothing rests.
    """
    if not is_digest(digest):
        raise FormatError(f"expected the digest sha256:<64 hex> of what is revoked, got {digest!r}")
    reading = read_state(ledger)
    write_snapshot(ledger, reading, signer)
    if digest in ledger.records():
        release = ledger.read(digest).release
        raise FormatError(
            f"expected the digest of something that a release rests on, got that of a record, {digest}",
            remedy=f"revoke its release: {release}" if release else "the record put nothing live",
        )
    live, unread = live_records(ledger, reading, revocations(ledger, reading))
    affected = tuple(one for one in live if digest in digests_of_record(one.record))
    artefacts = {f"{live.record.channel}/{live.record.target}": live.release for live in affected}
    draft = RecordDraft("revocation", EVERY, EVERY, reason, artefacts, fields, revokes=digest)
    record = ledger.append(draft, signer)
    revoked = revocations(ledger)
    ways_out = tuple(way_out(replace(live, revoked=reason), revoked) for live in affected)
    return Revocation(record, affected, unread, ways_out)


@dataclass(frozen=True)
class AffectedRollback:
    """What became of one live release that a revocation affected.

    Attributes:
        live: what was live.
        restored: the record that put an earlier release live again; None where nothing could be restored. Then the
            revoked release keeps its pointer, and `safegene.ledger.promotion.resolve_release` refuses it.
        message: one sentence.
        failed: whether an earlier release was there and could not be restored.
    """

    live: LiveRecord
    restored: str | None
    message: str
    failed: bool


def roll_back_affected(
    ledger: Ledger, signer: Signer, affected: Sequence[LiveRecord], *, fields: Mapping[str, Any]
) -> tuple[AffectedRollback, ...]:
    """Roll each affected target back to its newest earlier release that nothing revokes.

    A target without one is left with nothing to serve. An error with one target does not keep the others from being
    rolled back.

    Args:
        ledger: the ledger.
        signer: who signs the records.
        affected: from `record_revocation`.
        fields: fields of the new records that differ from those of the restored records, such as ``run``.
    """
    revoked = revocations(ledger)
    return tuple(_roll_back(ledger, signer, live, revoked, fields) for live in affected)


def _roll_back(
    ledger: Ledger, signer: Signer, live: LiveRecord, revoked: Sequence[RevokedDigest], fields: Mapping[str, Any]
) -> AffectedRollback:
    target, channel = live.record.target, live.record.channel
    sound = sound_releases(live, revoked)
    if not sound:
        message = f"{target}: no earlier release on {channel} that is not revoked; nothing is served from now on"
        return AffectedRollback(live, None, message, failed=False)
    problems = list[str]()
    for record in sound:
        try:
            done = record_rollback(ledger, signer, target, channel, fields=fields, to=record.digest)
        except SafegeneError as error:
            problems.append(f"record {record.sequence}: {error.message}")
            continue
        return AffectedRollback(live, done.record, done.message, failed=False)
    message = f"{target}: not rolled back on {channel}, and nothing is served from now on: {'; '.join(problems)}"
    return AffectedRollback(live, None, message, failed=True)
