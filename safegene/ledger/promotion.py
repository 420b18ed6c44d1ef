"""What is live on a channel, and the rules by which that changes. No statistics here.

Every attempt is recorded, refused ones too. Two write no record: a dry run, and promoting what is already live. The
rules, in this order:

1. the evidence must have passed (see `safegene.pipeline.stages.promote` for how it is checked);
2. a release that is live already, and not revoked, stays live, and no record is written;
3. neither the release nor anything that it rests on may be revoked;
4. a candidate that was rolled back since the last promotion is not promoted, unless a rollback put it live again;
5. the verdict must have been measured against what is live now, or against nothing where that is revoked; where the
   live candidate is this one, any reference will do;
6. the verdict must count every earlier attempt on this fine-tune that is on record, see `safegene.ledger.attempts`.

Then the release is published, the record is linked, and the channel pointer is replaced, in this order. If another
promotion replaces the pointer first, the attempt raises PromotionRefused, and a record of outcome ``superseded`` says
which record did not go live.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from securesystemslib.signer import CryptoSigner

from safegene.errors import LedgerError, PreconditionFailed, PromotionRefused, StaleArtifact
from safegene.ledger.attempts import Attempt, earlier_candidates
from safegene.ledger.chain import Ledger
from safegene.ledger.live import LiveRecord, digests_named, live_record, revocations, why_revoked
from safegene.ledger.record import Record, RecordDraft, RecordOutcome
from safegene.ledger.release import Release, open_release, plan_release, publish_release, release_uri
from safegene.ledger.store import require_conditions
from safegene.workspace.layout import cache_folder

EXIT = {"fail": 3, "inconclusive": 4, "error": 1}
SERVED_FILES = ("candidate/adapter_model.safetensors", "candidate/change.safetensors")
"""Files of a release that a server loads: subjects of the record beside the release."""

ClaimOutcome = Literal["pass", "fail", "inconclusive", "error"]


@dataclass(frozen=True)
class PromotionClaim:
    """An attempt to promote a candidate.

    Attributes:
        target: the target's name.
        outcome: what the evidence allows.
        reason: one sentence.
        artefacts: artefact name -> digest; ``candidate`` among them.
        fields: content of the record's fields.
        files: name -> file and digest, of the release that a pass publishes.
        measured_against: digest of the release that was live when the verdict was measured; None for none.
        attempt: the candidate and its fine-tune, by content; None where nothing is promoted.
        attempt_number: which attempt on its fine-tune the verdict counts it as.
    """

    target: str
    outcome: ClaimOutcome
    reason: str
    artefacts: Mapping[str, str]
    fields: Mapping[str, Any]
    files: Mapping[str, tuple[Path, str]] = field(default_factory=dict)
    measured_against: str | None = None
    attempt: Attempt | None = None
    attempt_number: int = 1


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
        LedgerError: nothing is live; the chain or the pointer is broken; a rollback is newer than the pointer.
        DigestMismatch: the release is not what its record says.
        PromotionRefused: something that the release rests on was revoked.
    """
    live = live_record(ledger, target, channel)
    if live is None:
        raise LedgerError(f"expected something live for {target} on {channel}, got nothing, in {ledger.store.uri}")
    raise_if_revoked(live.revoked)
    if rollback := live.newer_rollback:
        raise LedgerError(
            f"expected the channel to point to record {rollback.sequence}, which rolled {target} back on {channel}, "
            f"got a pointer to record {live.record.sequence}: the rollback was interrupted, or somebody set the "
            f"pointer back, in {ledger.store.uri}",
            remedy=f"`safegene rollback {target} --channel {channel}` again",
        )
    path = open_release(ledger.store, live.release, cache=cache_folder(), artefacts=live.record.artefacts)
    uri, record = release_uri(ledger.store, live.release), live.record
    return ResolvedRelease(target, channel, live.release, uri, str(path), record.digest, record.sequence)


def record_promotion(
    ledger: Ledger, signer: CryptoSigner, claim: PromotionClaim, channel: str, *, dry_run: bool = False
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
    live = live_record(ledger, claim.target, channel)
    release = plan_release(claim.target, claim.files)
    if claim.outcome == "pass" and live and live.release == release.digest and not live.revoked:
        message = f"{claim.target}: live on {channel} already, by record {live.record.sequence}; nothing changed"
        return AttemptResult("pass", message, None, release.digest)
    ruling = _apply_rules(claim, channel, live, ledger, release)
    replaces = live.record.digest if live else None
    if dry_run:
        return AttemptResult(ruling.outcome, _dry_run_message(claim, channel, ruling, live), None, release.digest)
    if ruling.outcome != "pass":
        record = record_refusal(
            ledger, signer, claim, channel, outcome=ruling.outcome, reason=ruling.reason, replaces=replaces
        )
        raise _refusal(claim, channel, ruling, record)
    publish_release(ledger.store, release, claim.files)
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
    record = put_live(ledger, signer, draft, live)
    message = f"{claim.target}: promoted to {channel} by record {record.sequence}, release {release.digest}"
    return AttemptResult("pass", message, record.digest, release.digest)


def record_refusal(
    ledger: Ledger,
    signer: CryptoSigner,
    claim: PromotionClaim,
    channel: str,
    *,
    outcome: RecordOutcome | None = None,
    reason: str | None = None,
    replaces: str | None = None,
) -> Record:
    """Record an attempt that puts nothing live; outcome and reason are the claim's where none are given."""
    return ledger.append(
        RecordDraft(
            outcome or claim.outcome,
            claim.target,
            channel,
            reason or claim.reason,
            claim.artefacts,
            claim.fields,
            replaces=replaces,
        ),
        signer,
    )


def put_live(ledger: Ledger, signer: CryptoSigner, draft: RecordDraft, live: LiveRecord | None) -> Record:
    """Link a publishing record and set its channel pointer to it.

    Args:
        ledger: the ledger.
        signer: who signs the record.
        draft: the record, of outcome ``pass`` or ``rollback``.
        live: what was live when the rules were applied; None for nothing.

    Raises:
        PromotionRefused: something else went live since; a record of outcome ``superseded`` says so.
    """
    record = ledger.append(draft, signer)
    try:
        ledger.publish(record, live.pointer if live else None)
        return record
    except PreconditionFailed:
        winner = live_record(ledger, draft.target, draft.channel)
        if winner and record.digest in {earlier.digest for earlier in winner.was_live}:
            return record  # the pointer was set, and only the store's reply was lost
    first = f"record {winner.record.sequence}" if winner else "another writer's record"
    reason = f"{first} was promoted to {draft.channel} first"
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


def raise_if_revoked(why: str) -> None:
    """Raise if something is revoked; ``why`` is the answer of `why_revoked`, empty for nothing.

    Raises:
        PromotionRefused: something is.
    """
    if why:
        raise PromotionRefused(
            f"expected nothing revoked, got: {why}",
            remedy="roll back to a release that is not revoked: `safegene rollback TARGET --to RECORD`",
        )


@dataclass(frozen=True)
class Ruling:
    """What the rules say of a claim.

    Attributes:
        outcome: ``pass``, or how the attempt ends.
        reason: one sentence.
        remedy: what leads out of a refusal.
    """

    outcome: ClaimOutcome
    reason: str
    remedy: str = ""


def _apply_rules(
    claim: PromotionClaim, channel: str, live: LiveRecord | None, ledger: Ledger, release: Release
) -> Ruling:
    """The first rule that forbids the promotion, or a pass."""
    target = claim.target
    if claim.outcome != "pass":
        remedy = f"see `safegene gate show {target}`, or the report (`safegene report`)"
        return Ruling(claim.outcome, claim.reason, remedy)
    used = digests_named({"artefacts": claim.artefacts, "fields": claim.fields}) | {release.digest}
    if reason := why_revoked(revocations(ledger), used):
        return Ruling("fail", reason, "replace what was revoked, then `safegene run` to make another candidate")
    candidate = claim.artefacts.get("candidate")
    if live and candidate in live.rolled_back and candidate != live.record.artefacts.get("candidate"):
        return Ruling(
            "fail",
            f"this candidate was rolled back; the newest rollback is record {live.record.sequence}",
            f"change the repair and `safegene run`, for another candidate; or put this one live again by `safegene "
            f"rollback {target} --channel {channel} --to RECORD`, with its record in `safegene audit history {target}`",
        )
    reference = live.release if live and not live.revoked else None
    same_candidate = live is not None and live.record.artefacts.get("candidate") == candidate
    if claim.measured_against != reference and not same_candidate:
        now_live = reference or ("a revoked release" if live else "nothing")
        return Ruling(
            "error",
            f"when the verdict was measured, {claim.measured_against or 'nothing'} was live; now {now_live} is live "
            f"on {channel}",
            f"run `safegene run` with promote.channel {channel}, to measure against what is live there",
        )
    on_record = 1 + len(earlier_candidates(ledger, claim.attempt)) if claim.attempt else 1
    if claim.attempt_number < on_record and not same_candidate:
        return Ruling(
            "error",
            f"the verdict counts this as attempt {claim.attempt_number} on its fine-tune; with those on record, under "
            f"every target name, it is attempt {on_record}",
            "run `safegene run`, which evaluates it as that attempt",
        )
    return Ruling("pass", claim.reason)


def _refusal(claim: PromotionClaim, channel: str, ruling: Ruling, record: Record) -> PromotionRefused | StaleArtifact:
    expected = f"expected a passing verdict for {claim.target}, got {ruling.outcome}"
    if claim.outcome == "pass":
        expected = f"expected to promote {claim.target} to {channel}, got a refusal ({ruling.outcome})"
    message = f"{expected}: {ruling.reason}; see record {record.sequence}"
    error: PromotionRefused | StaleArtifact
    if ruling.outcome == "error":
        error = StaleArtifact(message, remedy=ruling.remedy)
    else:
        error = PromotionRefused(message, remedy=ruling.remedy)
        error.exit_code = EXIT[ruling.outcome]
    error.record = record.digest
    return error


def _dry_run_message(claim: PromotionClaim, channel: str, ruling: Ruling, live: LiveRecord | None) -> str:
    reason = ruling.reason
    if ruling.outcome != "pass":
        return f"{claim.target}: would be refused ({ruling.outcome}): {reason}; dry run, nothing written"
    replaced = f"record {live.record.sequence}" if live else "nothing"
    return f"{claim.target}: would be promoted to {channel}, replacing {replaced}: {reason}; dry run, nothing written"
