"""Rollback: put live again what was live before, by a new record."""

from collections.abc import Mapping
from typing import Any

from securesystemslib.signer import Signer

from safegene.errors import PromotionRefused
from safegene.ledger.chain import Ledger
from safegene.ledger.live import digests_of_record, find_record, live_record, revocations, way_out, why_revoked
from safegene.ledger.promotion import AttemptResult, put_live
from safegene.ledger.record import RecordDraft
from safegene.ledger.release import require_release_of
from safegene.ledger.rules import raise_if_revoked
from safegene.ledger.store import require_conditions
from safegene.ledger.trust import why_untrusted


def record_rollback(
    ledger: Ledger,
    signer: Signer,
    target: str,
    channel: str,
    *,
    fields: Mapping[str, Any],
    to: str | None = None,
) -> AttemptResult:
    """Put live again what was live before, after its bytes were verified again.

    Args:
        ledger: the ledger.
        signer: who signs the record.
        target: the target's name.
        channel: the channel's name.
        fields: fields that differ from the restored record's, such as ``run``.
        to: sequence number of a record that was live, or at least 8 digits of its digest or of its release's; default:
            what was live before the present release was first promoted.

    Raises:
        PromotionRefused: no such record was live, or what it rests on was revoked.
        DigestMismatch: the release's bytes have changed.
    """
    require_conditions(ledger.store)
    live = live_record(ledger, target, channel, signer=signer)
    if live is None:
        raise PromotionRefused(
            f"expected something live for {target} on {channel} to roll back, got nothing",
            remedy=f"`safegene run {target}` makes a candidate and promotes it if it passes",
        )
    if live.settled and live.record.outcome == "rollback" and not to:
        message = f"{target}: the interrupted rollback of record {live.record.sequence} is complete now, on {channel}"
        return AttemptResult("rollback", message, None, live.release)
    restored = find_record(to, live.was_live) if to else live.predecessor
    revoked = revocations(ledger)
    if restored is None:
        raise PromotionRefused(
            f"expected {to or 'an earlier release'} among what was live for {target} on {channel}, got none such",
            remedy=way_out(live, revoked),
        )
    if restored.release == live.release:
        return AttemptResult("rollback", f"{target}: that release is live already; nothing changed", None, live.release)
    why = why_revoked(revoked, digests_of_record(restored)) or why_untrusted(ledger, restored, revoked)
    raise_if_revoked(why, way_out(live, revoked) if why else "")
    require_release_of(ledger.store, str(restored.release), restored.artefacts)
    draft = RecordDraft(
        "rollback",
        target,
        channel,
        f"rolled back from record {live.record.sequence} to record {restored.sequence}",
        restored.artefacts,
        {**restored.predicate.fields(), **fields},
        release=restored.release,
        replaces=live.record.digest,
        restores=restored.digest,
    )
    record = put_live(ledger, signer, draft)
    message = (
        f"{target}: rolled back on {channel} to the release of record {restored.sequence}, by record {record.sequence}"
    )
    return AttemptResult("rollback", message, record.digest, restored.release)
