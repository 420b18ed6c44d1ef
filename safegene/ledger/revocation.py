"""Revocation: record that a digest must not be relied on any more."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from securesystemslib.signer import CryptoSigner

from safegene.errors import FormatError, LedgerError
from safegene.ledger.chain import Ledger
from safegene.ledger.live import LiveRecord, digests_of_record, live_record
from safegene.ledger.record import EVERY, Record, RecordDraft
from safegene.workspace.digest import is_digest


@dataclass(frozen=True)
class Revocation:
    """A recorded revocation.

    Attributes:
        record: its record.
        affected: every live release that rests on the revoked digest. It stays live until somebody rolls it back, but
            `safegene.ledger.promotion.resolve_release` refuses it.
        unread: why a channel could not be read, for each such channel; it may hold an affected release.
    """

    record: Record
    affected: tuple[LiveRecord, ...]
    unread: tuple[str, ...]


def record_revocation(
    ledger: Ledger, signer: CryptoSigner, digest: str, reason: str, *, fields: Mapping[str, Any]
) -> Revocation:
    """Record that a digest (of a vector, dataset, judge, checkpoint, candidate or release) must not be relied on.

    Raises:
        FormatError: it is no digest, or it is that of a record, on which nothing rests.
    """
    if not is_digest(digest):
        raise FormatError(f"expected the digest sha256:<64 hex> of what is revoked, got {digest!r}")
    if digest in ledger.records():
        release = ledger.read(digest).release
        raise FormatError(
            f"expected the digest of something that a release rests on, got that of a record, {digest}",
            remedy=f"revoke its release: {release}" if release else "the record put nothing live",
        )
    affected, unread = _affected(ledger, digest)
    artefacts = {f"{live.record.channel}/{live.record.target}": live.release for live in affected}
    draft = RecordDraft("revocation", EVERY, EVERY, reason, artefacts, fields, revokes=digest)
    return Revocation(ledger.append(draft, signer), affected, unread)


def _affected(ledger: Ledger, digest: str) -> tuple[tuple[LiveRecord, ...], tuple[str, ...]]:
    affected, unread = list[LiveRecord](), list[str]()
    for channel, target in ledger.channels():
        try:
            live = live_record(ledger, target, channel)
        except LedgerError as error:
            unread.append(error.message)
            continue
        if live and digest in digests_of_record(live.record):
            affected.append(live)
    return tuple(affected), tuple(unread)
