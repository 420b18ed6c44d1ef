"""Put a claim live on a channel if `safegene.ledger.rules` allow it, and find what is live.

Every attempt is recorded, refused ones too. Two write no record: a dry run, and promoting what is already live and not
revoked.

The release is published, its model folders are signed, the record is linked, and the channel pointer is replaced, in
this order. If another promotion is linked first, the attempt raises PromotionRefused, and a record of outcome
``superseded`` says which record did not go live. Where more than one signature is needed, the record is of outcome
``pending`` and replaces no pointer; `safegene.ledger.approval` puts it live.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from securesystemslib.signer import Signer

from safegene.errors import LedgerError, PromotionRefused, StoreError, as_safegene_error
from safegene.ledger.chain import Ledger
from safegene.ledger.lease import require_fence
from safegene.ledger.live import LiveRecord, live_record, revocations, settled_record, took_effect, way_out
from safegene.ledger.model_signature import FIELD, sign_models, verify_models
from safegene.ledger.pins import owner_of
from safegene.ledger.pointers import channel_name
from safegene.ledger.record import PUBLISHING, Record, RecordDraft, RecordOutcome, draft_fields
from safegene.ledger.release import open_release, plan_release, publish_release, release_uri
from safegene.ledger.rules import EXIT, PromotionClaim, Ruling, raise_if_revoked, refusal_error, ruling_on
from safegene.ledger.snapshot import read_state
from safegene.ledger.store import require_conditions
from safegene.ledger.trust import ApprovalRequest, request_of
from safegene.workspace.digest import digest_json
from safegene.workspace.layout import cache_folder

SERVED_FILES = ("candidate/adapter_model.safetensors", "candidate/change.safetensors")
"""Files of a release that a server loads: subjects of the record beside the release."""
COMPARED = ("datasets", "policy", "judge")
"""Fields, beside the artefacts, in which a refusal differs from the one before it."""


@dataclass(frozen=True)
class AttemptResult:
    """How an attempt to promote or to roll back ended.

    Attributes:
        outcome: how it ended.
        message: one sentence for people.
        record: digest of its record; None where none was written.
        release: digest of the release that it concerned.
    """

    outcome: RecordOutcome
    message: str
    record: str | None
    release: str | None


@dataclass(frozen=True)
class ResolvedRelease:
    """A release to serve.

    Attributes:
        target: the target's name.
        channel: the channel's name.
        release: the release's digest.
        uri: its place in the store.
        path: a folder with its files on this machine; ``candidate/`` below it is the PEFT adapter, and
            ``target/checkpoint.json`` names the model that the adapter belongs to.
        record: digest of the record that put it live.
        sequence: number of that record.
    """

    target: str
    channel: str
    release: str
    uri: str
    path: str
    record: str
    sequence: int


def resolve_release(ledger: Ledger, target: str, channel: str) -> ResolvedRelease:
    """The release that a server should load, verified byte for byte and not revoked.

    Raises:
        LedgerError: nothing is live; the chain or the pointer is broken, or was set back.
        DigestMismatch: the release is not what its record says.
        PromotionRefused: something that the release rests on was revoked.
    """
    live = settled_record(ledger, target, channel)
    if live is None:
        raise LedgerError(
            f"expected something live for {target} on {channel}, got nothing, in {ledger.store.uri}",
            remedy=f"`safegene run {target}` makes a candidate and promotes it if it passes",
        )
    raise_if_revoked(live.revoked, way_out(live, revocations(ledger)) if live.revoked else "")
    if live.unsettled:
        verb = "rollback" if live.record.outcome == "rollback" else "promote"
        raise LedgerError(live.unsettled, remedy=f"`safegene {verb} {target}` again moves the pointer on")
    path = open_release(ledger.store, live.release, cache=cache_folder(), artefacts=live.record.artefacts)
    uri, record = release_uri(ledger.store, live.release), live.record
    verify_models(ledger.store, record, ledger.keys)
    return ResolvedRelease(target, channel, live.release, uri, str(path), record.digest, record.sequence)


def record_promotion(
    ledger: Ledger, signer: Signer, claim: PromotionClaim, channel: str, *, dry_run: bool = False
) -> AttemptResult:
    """Put the release of a claim live on a channel if the rules allow it, and record the attempt in any case.

    Raises:
        PromotionRefused: a rule forbids it (exit code 3; 4 if inconclusive), or another promotion was first.
        StaleArtifact: the verdict was measured against something else than what is live.
        DigestMismatch: a file has changed since it was verified.
        StoreError: the store failed, or ignores conditions.
    """
    if not dry_run:
        require_conditions(ledger.store)
    live = live_record(ledger, claim.target, channel, signer=None if dry_run else signer)
    release = plan_release(claim.target, claim.files)
    if claim.outcome == "pass" and live and live.release == release.digest and not live.revoked:
        what = "the interrupted promotion is complete now" if live.settled else "nothing changed"
        message = f"{claim.target}: live on {channel} already, by record {live.record.sequence}; {what}"
        return AttemptResult("pass", message, None, release.digest)
    ruling = ruling_on(claim, channel, live, ledger, release.digest)
    needed = signatures_of(ledger, claim)
    if dry_run:
        outcome: RecordOutcome = ruling.outcome if ruling.outcome != "pass" or needed == 1 else "pending"
        return AttemptResult(outcome, _dry_run_message(claim, channel, ruling, live, needed), None, release.digest)
    replaces = live.record.digest if live else None
    if ruling.outcome != "pass":
        record, new = record_refusal(
            ledger, signer, claim, channel, outcome=ruling.outcome, reason=ruling.reason, replaces=replaces
        )
        raise refusal_error(claim, channel, ruling, record, new=new)
    publish_release(ledger.store, release, claim.files)
    require_fence(ledger.store, claim.fields.get("run", {}))
    claim = with_security(claim, sign_models(ledger.store, release, signer))
    if needed > 1:
        return _wait_for_approval(ledger, signer, claim, channel, reason=ruling.reason, release=release.digest)
    draft = RecordDraft(
        "pass",
        claim.target,
        channel,
        ruling.reason,
        claim.artefacts,
        claim.fields,
        release=release.digest,
        replaces=replaces,
        files={name: claim.files[name][1] for name in SERVED_FILES if name in claim.files},
    )
    record = put_live(ledger, signer, draft)
    message = f"{claim.target}: promoted to {channel} by record {record.sequence}, release {release.digest}"
    return AttemptResult("pass", message, record.digest, release.digest)


def with_security(claim: PromotionClaim, signatures: Mapping[str, str]) -> PromotionClaim:
    """The claim with the signatures of its model folders in field ``security``."""
    known: Any = claim.fields.get("security")
    security = {**(known if isinstance(known, Mapping) else {}), FIELD: dict(signatures)}
    return replace(claim, fields={**claim.fields, "security": security}) if signatures else claim


def signatures_of(ledger: Ledger, claim: PromotionClaim) -> int:
    """How many signatures of different persons the claim needs: the most that anybody asks for."""
    pinned = ledger.signatures[-1][1] if ledger.signatures else 1
    return max(claim.signatures, pinned, 2 if claim.override else 1)


def newest_record(ledger: Ledger, target: str, channel: str) -> Record | None:
    """The newest record of a target on a channel; None for none."""
    reading = read_state(ledger)
    newest = reading.now.last.get(channel_name(channel, target)) if reading else None
    return ledger.read(newest) if newest else None


def _wait_for_approval(
    ledger: Ledger, signer: Signer, claim: PromotionClaim, channel: str, *, reason: str, release: str
) -> AttemptResult:
    """Record that a claim waits for the signatures of others; once for the same claim."""
    needed = signatures_of(ledger, claim)
    if not owner_of(signer.public_key):
        raise LedgerError(
            f"expected a key with an owner, since {needed} persons must sign, got {signer.public_key.keyid[:12]}.. "
            "without one",
            remedy=f"`safegene keys pin {signer.public_key.keyid[:12]} --owner NAME`",
        )
    request = ApprovalRequest(
        required=needed, release=release, measured_against=claim.measured_against, override=claim.override
    )
    record = newest_record(ledger, claim.target, channel)
    if record is None or record.outcome != "pending" or request_of(record) != request:
        fields = {**claim.fields, "approval": request.model_dump()}
        record = ledger.append(RecordDraft("pending", claim.target, channel, reason, claim.artefacts, fields), signer)
    message = (
        f"{claim.target}: not live yet; record {record.sequence} waits for {needed - 1} more "
        f"{'signature' if needed == 2 else 'signatures'}: `safegene approve {record.sequence}` by an approver"
    )
    return AttemptResult("pending", message, record.digest, release)


def record_refusal(
    ledger: Ledger,
    signer: Signer,
    claim: PromotionClaim,
    channel: str,
    *,
    outcome: RecordOutcome | None = None,
    reason: str | None = None,
    replaces: str | None = None,
) -> tuple[Record, bool]:
    """Record an attempt that puts nothing live; outcome and reason are the claim's where none are given.

    Where the target's newest record on the channel is a refusal for the same reason on the same artefacts and data,
    nothing new is recorded: a scheduled run must not add a record each time.

    Returns:
        The record, and whether it is new.
    """
    draft = RecordDraft(
        outcome or claim.outcome,
        claim.target,
        channel,
        reason or claim.reason,
        claim.artefacts,
        claim.fields,
        replaces=replaces,
    )
    last = newest_record(ledger, draft.target, draft.channel)
    if last and last.outcome not in PUBLISHING and _says_the_same(last, draft):
        return last, False
    return ledger.append(draft, signer), True


def _says_the_same(record: Record, draft: RecordDraft) -> bool:
    before, now = record.predicate.fields(), draft_fields(draft)
    said = (record.outcome, record.reason, dict(record.artefacts), record.replaces)
    says = (draft.outcome, draft.reason, dict(draft.artefacts), draft.replaces)
    return said == says and all(digest_json(before[name]) == digest_json(now[name]) for name in COMPARED)


def put_live(ledger: Ledger, signer: Signer, draft: RecordDraft) -> Record:
    """Link a publishing record and set its channel pointer to it.

    Args:
        ledger: the ledger.
        signer: who signs the record.
        draft: the record; it names what was live when the rules were applied.

    Raises:
        PromotionRefused: something else went live since; a record of outcome ``superseded`` says so.
    """
    record = ledger.append(draft, signer)
    try:
        effective, winner = took_effect(ledger, record)
        live_record(ledger, draft.target, draft.channel, signer=signer)  # moves the pointer
    except (StoreError, OSError) as failed:
        raise StoreError(
            f"record {record.sequence} puts {draft.target} live, but then: {as_safegene_error(failed).message}",
            remedy=f"`safegene resolve {draft.target} {draft.channel}` says what is live; the same command settles it",
        ) from failed
    if effective:
        return record
    reason = f"record {winner} was promoted to {draft.channel} first"
    superseded = RecordDraft(
        "superseded", draft.target, draft.channel, reason, draft.artefacts, draft.fields, replaces=record.digest
    )
    error = PromotionRefused(
        f"expected to promote {draft.target} by record {record.sequence}, got another promotion first: {reason}",
        remedy="run `safegene run` to measure against what is live now",
    )
    error.exit_code = EXIT["error"]
    error.record = ledger.append(superseded, signer).digest
    raise error


def _dry_run_message(claim: PromotionClaim, channel: str, ruling: Ruling, live: LiveRecord | None, needed: int) -> str:
    reason = ruling.reason
    if ruling.outcome != "pass":
        return f"{claim.target}: would be refused ({ruling.outcome}): {reason}; dry run, nothing written"
    replaced = f"record {live.record.sequence}" if live else "nothing"
    signed = f" after {needed} signatures" if needed > 1 else ""
    would = f"would be promoted to {channel}{signed}, replacing {replaced}"
    return f"{claim.target}: {would}: {reason}; dry run, nothing written"
