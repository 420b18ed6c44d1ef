"""Approve what somebody else promoted, where a promotion needs more than one signature.

`safegene promote` writes a signed record of outcome ``pending`` (see `safegene.ledger.promotion`). Each approver signs
its `approval_statement`; the signatures lie in the store, one object for each key, and nobody can change one::

    approvals/<sha256 of the pending record>/<key id>.json     a DSSE envelope

The approver with the last signature that is needed applies the rules again and puts the release live, by a record that
holds all of the signatures. An approval is refused from the author, by whichever of the author's keys; from a key that
``ledger.pub`` does not name as an approver's; and for a record that is not the target's newest on its channel.

An approver, or the author, can reject it instead, by a record of outcome ``fail``: after that nobody can approve it.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from securesystemslib.dsse import Envelope
from securesystemslib.signer import Signer, SSlibKey

from safegene.errors import FormatError, PreconditionFailed, PromotionRefused
from safegene.ledger.chain import Ledger
from safegene.ledger.live import find_record, live_record, revocations
from safegene.ledger.pins import may_approve, owner_of, person
from safegene.ledger.promotion import SERVED_FILES, AttemptResult, newest_record, put_live, record_refusal
from safegene.ledger.record import PAYLOAD, Record, RecordDraft
from safegene.ledger.release import require_release_of
from safegene.ledger.rules import PromotionClaim, refusal_error, ruling_on
from safegene.ledger.store import require_conditions
from safegene.ledger.trust import (
    Approval,
    ApprovalRequest,
    approval_statement,
    approving_keys,
    ledger_day,
    request_of,
    trusted_until,
    why_untrusted,
)
from safegene.workspace.digest import PREFIX, canonical_json, strict_json


@dataclass(frozen=True)
class PendingPromotion:
    """A promotion that waits for signatures.

    Attributes:
        record: the ``pending`` record.
        request: what it asks for.
        author: owner of the key that signed it.
        approvers: owners of the keys that approved it so far.
    """

    record: Record
    request: ApprovalRequest
    author: str
    approvers: tuple[str, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """What an approver should know, a line each."""
        record, override = self.record, self.request.override
        verdict: Any = record.predicate.verdict
        lines = [
            f"record {record.sequence} by {self.author}: {record.target} on {record.channel}, release "
            f"{self.request.release}",
            f"verdict: {verdict.get('outcome') if isinstance(verdict, dict) else 'unknown'}; {record.reason}",
        ]
        if override:
            lines.append(f"OVERRIDE of {override.verdict} until {override.expires}: {override.reason}")
        have = f", so far of {', '.join(self.approvers)}" if self.approvers else ""
        return (*lines, f"approvals needed: {self.request.required - 1}{have}")


def find_pending(ledger: Ledger, name: str) -> PendingPromotion:
    """A promotion that waits for signatures.

    Args:
        ledger: the ledger.
        name: sequence number of its record, or at least 8 digits of the record's digest.

    Raises:
        PromotionRefused: there is no such record, or it does not wait, or a newer attempt replaced it.
        LedgerError: the chain is broken.
    """
    record = find_record(name, tuple(ledger.walk()))
    if record is None or record.outcome != "pending":
        got = f"a record of outcome {record.outcome}" if record else "no such record"
        raise PromotionRefused(
            f"expected a record that waits for approval, got {got}, for {name!r}",
            remedy="`safegene audit history TARGET` lists them",
        )
    newest = newest_record(ledger, record.target, record.channel)
    if newest and newest.digest != record.digest:
        raise PromotionRefused(
            f"expected the newest attempt for {record.target} on {record.channel}, got record {record.sequence}, after "
            f"which record {newest.sequence} ended in {newest.outcome}",
            remedy=f"`safegene approve {newest.sequence}`" if newest.outcome == "pending" else "",
        )
    authors = sorted({owner_of(key) for key in ledger.keys if key.keyid in record.signers})
    keys = _approvers(ledger, record, _collected(ledger, record))
    return PendingPromotion(record, request_of(record), ", ".join(authors), tuple(map(owner_of, keys)))


def approve(ledger: Ledger, signer: Signer, pending: PendingPromotion) -> AttemptResult:
    """Add a signature to a promotion that waits, and put it live if that was the last one needed.

    Raises:
        PromotionRefused: the signer is the author, or no approver; or a rule forbids the promotion now.
        StaleArtifact: something else went live since the verdict was measured.
        DigestMismatch: the release's bytes have changed.
        StoreError: the store failed, or ignores conditions.
    """
    require_conditions(ledger.store)
    record, request = pending.record, pending.request
    _require_approver(ledger, signer.public_key, pending)
    release = require_release_of(ledger.store, request.release, record.artefacts)
    live = live_record(ledger, record.target, record.channel, signer=signer)
    claim = _claim(pending)
    ruling = ruling_on(claim, record.channel, live, ledger, request.release)
    if ruling.outcome != "pass":
        refused, new = record_refusal(
            ledger, signer, claim, record.channel, outcome=ruling.outcome, reason=ruling.reason, replaces=record.digest
        )
        raise refusal_error(claim, record.channel, ruling, refused, new=new)
    own = Envelope(approval_statement(record), PAYLOAD, {})
    own.sign(signer)
    with suppress(PreconditionFailed):  # an ECDSA signature is another one each time
        ledger.store.put_if_absent(_key(record, signer.public_key.keyid), canonical_json(own.to_dict()))
    envelope = _collected(ledger, record)
    envelope.signatures |= own.signatures
    keys = _approvers(ledger, record, envelope)
    if missing := request.required - 1 - len(keys):
        signed = ", ".join(map(owner_of, keys))
        so_far = f"record {record.sequence} is approved by {signed}, and {missing} more needed"
        message = f"{record.target}: not live yet; {so_far}"
        return AttemptResult("pending", message, record.digest, request.release)
    envelope.signatures = {key.keyid: envelope.signatures[key.keyid] for key in keys}
    approval = Approval(
        pending=record.digest,
        request=request,
        author=pending.author,
        approvers=tuple(map(owner_of, keys)),
        envelope=envelope.to_dict(),
    )
    draft = RecordDraft(
        claim.goes_live,
        record.target,
        record.channel,
        record.reason,
        record.artefacts,
        {**record.predicate.fields(), "approval": approval.model_dump(mode="json")},
        release=request.release,
        replaces=live.record.digest if live else None,
        files={name: release.files[name] for name in SERVED_FILES if name in release.files},
    )
    done = put_live(ledger, signer, draft)
    how = f"by an override until {request.override.expires}" if request.override else "as approved"
    message = (
        f"{record.target}: promoted to {record.channel} {how} by {', '.join(approval.approvers)}, by record "
        f"{done.sequence}, release {request.release}"
    )
    return AttemptResult(claim.goes_live, message, done.digest, request.release)


def reject(ledger: Ledger, signer: Signer, pending: PendingPromotion, reason: str) -> AttemptResult:
    """Record that a promotion that waits is refused; only a new `safegene promote` can ask again.

    Raises:
        PromotionRefused: the signer is neither an approver nor the author, or is not trusted any more.
    """
    record, key = pending.record, signer.public_key
    if not _is_author(ledger, key, record):
        _require_approver(ledger, key, pending)
    said = f"rejected by {owner_of(key) or key.keyid[:12]}: {reason}"
    refused, _ = record_refusal(
        ledger, signer, _claim(pending), record.channel, outcome="fail", reason=said, replaces=record.digest
    )
    message = f"{record.target}: record {record.sequence} is {said}; see record {refused.sequence}"
    return AttemptResult("fail", message, refused.digest, None)


def _is_author(ledger: Ledger, key: SSlibKey, record: Record) -> bool:
    authors = {person(each) for each in ledger.keys if each.keyid in record.signers}
    return key.keyid in record.signers or person(key) in authors


def _require_approver(ledger: Ledger, key: SSlibKey, pending: PendingPromotion) -> None:
    record, name = pending.record, f"{key.keyid[:12]}.."
    revoked = revocations(ledger)
    if why := why_untrusted(ledger, record, revoked):
        raise PromotionRefused(f"expected a trusted record to approve, got record {record.sequence}: {why}")
    if _is_author(ledger, key, record):
        raise PromotionRefused(
            f"expected an approver who is not the author of record {record.sequence}, {pending.author}, got the key "
            f"{name} of the same person",
            remedy="let somebody else run `safegene approve`",
        )
    if not may_approve(key):
        raise PromotionRefused(
            f"expected the key of an approver, got {name} of {owner_of(key) or 'nobody named'}, which may not approve",
            remedy=f"`safegene keys pin {key.keyid[:12]} --owner NAME --approver`, by somebody whose key is pinned",
        )
    if record.sequence + 1 >= trusted_until(ledger.keys, revoked).get(key.keyid, record.sequence + 2):
        raise PromotionRefused(f"expected a key that is trusted, got {name}, which was revoked")
    if pending.request.override:
        last = pending.request.override.expires
        if ledger_day(ledger).isoformat() > last:
            raise PromotionRefused(f"expected an override that has not expired, got one until {last}")


def _claim(pending: PendingPromotion) -> PromotionClaim:
    record, request = pending.record, pending.request
    return PromotionClaim(
        target=record.target,
        outcome=request.override.verdict if request.override else "pass",
        reason=record.reason,
        artefacts=record.artefacts,
        fields=record.predicate.fields(),
        measured_against=request.measured_against,
        override=request.override,
    )


def _collected(ledger: Ledger, record: Record) -> Envelope:
    """All signatures of a pending record's approval that the store holds, in one envelope."""
    whole = Envelope(approval_statement(record), PAYLOAD, {})
    for at in sorted(ledger.store.list(_key(record, "").removesuffix(".json"))):
        keyid = at.rpartition("/")[2].removesuffix(".json")
        with suppress(FormatError, AttributeError, KeyError, TypeError, ValueError):  # then it is nobody's approval
            envelope = Envelope.from_dict(strict_json(ledger.store.get(at)[0], where=ledger.where(at)))
            if envelope.payload == whole.payload and keyid in envelope.signatures:
                whole.signatures[keyid] = envelope.signatures[keyid]
    return whole


def _approvers(ledger: Ledger, record: Record, envelope: Envelope) -> list[SSlibKey]:
    limits = trusted_until(ledger.keys, revocations(ledger))
    newest = next(iter(ledger.walk()), record).sequence
    return approving_keys(ledger, record, envelope, limits, sequence=newest + 1)


def _key(record: Record, keyid: str) -> str:
    return f"approvals/{record.digest.removeprefix(PREFIX)}/{keyid}.json"
