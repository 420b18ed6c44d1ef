"""Channels: what is live for each target, and the ordered rules by which that changes. No statistics here.

An attempt ends in exactly one record, refusals too, except that promoting what is live already changes nothing and
writes nothing. The rules, in order:

1. the evidence must have passed (a claim says so; see `safegene.pipeline.stages.promote` for how it is checked);
2. a release that is live already, and not revoked, stays live, and no record is written;
3. neither the release nor anything that it rests on may be revoked;
4. a candidate that was rolled back does not return by itself;
5. the verdict must have been measured against what is live now (against nothing where that is revoked).

Then the release is published, the record linked, and the channel pointer swapped, in that order. Who loses the last
swap is told who won, and a record says ``superseded``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from securesystemslib.signer import CryptoSigner

from safegene.errors import FormatError, LedgerError, PreconditionFailed, PromotionRefused, StaleArtifact
from safegene.ledger import (
    FIELDS,
    Ledger,
    LiveRecord,
    Record,
    RecordDraft,
    RecordOutcome,
    Release,
    digests_named,
    find_record,
    live_record,
    open_release,
    plan_release,
    publish_release,
    records_resting_on,
    release_uri,
    require_release_of,
    revocation,
    revocations,
)
from safegene.ledger.store import Store, open_store, self_test
from safegene.workspace.digest import is_digest, strict_json
from safegene.workspace.layout import cache_folder

EXIT = {"fail": 3, "inconclusive": 4, "error": 1}
EVERY = "*"


@dataclass(frozen=True)
class PromotionClaim:
    """What an attempt says for itself.

    Attributes:
        target: the target's name.
        outcome: what the evidence allows.
        reason: one sentence.
        artefacts: artefact name -> digest; ``candidate`` among them.
        fields: content of the record's fields.
        files: name -> file, and its digest, of the release that a pass would publish.
        measured_against: digest of the release that was live when the verdict was measured; None for none.
    """

    target: str
    outcome: Literal["pass", "fail", "inconclusive", "error"]
    reason: str
    artefacts: Mapping[str, str]
    fields: Mapping[str, Any]
    files: Mapping[str, tuple[Path, str]] = field(default_factory=dict)
    measured_against: str | None = None


@dataclass(frozen=True)
class Promotion:
    """How an attempt ended: its outcome, a sentence for people, its record (None: nothing was written), its release."""

    outcome: RecordOutcome
    message: str
    record: str | None
    release: str | None


def resolve(ledger: Ledger, target: str, channel: str) -> dict[str, Any]:
    """What a server should load: verified byte for byte, not revoked.

    Returns:
        ``target, channel, release`` (digest), ``uri``, ``path`` (a folder on this machine; ``candidate/`` below it is
        the PEFT adapter, ``target/checkpoint.json`` names the model under it), ``record``, ``sequence``.

    Raises:
        LedgerError: nothing is live; the chain or the pointer is broken; a rollback is newer than the pointer.
        DigestMismatch: a byte of the release has changed, or is not what its record says.
        PromotionRefused: something that it was made from has been revoked since.
    """
    now = live_record(ledger, target, channel)
    if now is None:
        raise LedgerError(f"expected something live for {target} on {channel}, got nothing, in {ledger.store.uri}")
    _refuse_revoked(now.revoked)
    if later := now.set_back:
        raise LedgerError(
            f"expected {target} on {channel} to be what record {later.sequence} rolled back to, got a pointer to "
            f"record {now.record.sequence}: it was interrupted, or the pointer was set back, in {ledger.store.uri}",
            remedy=f"`safegene rollback {target}` again",
        )
    path = open_release(ledger.store, now.release, cache=cache_folder(), artefacts=now.record.artefacts)
    return {
        "target": target,
        "channel": channel,
        "release": now.release,
        "uri": release_uri(ledger.store, now.release),
        "path": str(path),
        "record": now.record.digest,
        "sequence": now.record.sequence,
    }


def record_promotion(
    ledger: Ledger, signer: CryptoSigner, claim: PromotionClaim, channel: str, *, dry_run: bool = False
) -> Promotion:
    """Put a claim's release live on a channel if the rules allow it; a record of the attempt either way.

    Raises:
        PromotionRefused: a rule forbids it (exit code 3, or 4 where nobody knows enough), or another promotion won.
        StaleArtifact: the verdict was measured against something else than what is live.
        StoreError: the store failed, or ignores conditions.
    """
    if not dry_run:
        require_conditions(ledger.store)
    now = live_record(ledger, claim.target, channel)
    release = plan_release(claim.target, claim.files)
    if claim.outcome == "pass" and now and now.release == release.digest and not now.revoked:
        message = f"{claim.target}: live on {channel} already, by record {now.record.sequence}; nothing changed"
        return Promotion("pass", message, None, release.digest)
    outcome, reason = _judge(claim, channel, now, ledger, release)
    replaces = now.record.digest if now else None
    if dry_run:
        return Promotion(outcome, _dry_run(claim, channel, outcome, reason, now), None, release.digest)
    if outcome != "pass":
        record = record_refusal(ledger, signer, claim, channel, outcome=outcome, reason=reason, replaces=replaces)
        raise _refused(claim.target, outcome, reason, record)
    publish_release(ledger.store, release, claim.files)
    draft = RecordDraft(
        "pass", claim.target, channel, reason, claim.artefacts, claim.fields, release=release.digest, replaces=replaces
    )
    record = _publish(ledger, signer, draft, now)
    message = f"{claim.target}: promoted to {channel} by record {record.sequence}, release {release.digest}"
    return Promotion("pass", message, record.digest, release.digest)


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
    """Record an attempt that puts nothing live."""
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


def record_rollback(
    ledger: Ledger,
    signer: CryptoSigner,
    target: str,
    channel: str,
    *,
    fields: Mapping[str, Any],
    to: str | None = None,
) -> Promotion:
    """Put live again what was live before, its bytes verified again.

    Args:
        ledger: the ledger.
        signer: who signs the record.
        target: the target's name.
        channel: the channel's name.
        fields: fields that differ from the restored record's: above all ``run``.
        to: a record's sequence, or the digest (or its first 8 digits) of a record or release that was live; default:
            what was live before the present one was first promoted.

    Raises:
        PromotionRefused: nothing such was live, or it was revoked.
        DigestMismatch: the release's bytes have changed.
    """
    require_conditions(ledger.store)
    now = live_record(ledger, target, channel)
    if now is None:
        raise PromotionRefused(f"expected something live for {target} on {channel} to roll back, got nothing")
    restored = find_record(to, now.before) if to else now.predecessor
    if restored is None:
        raise PromotionRefused(
            f"expected {to or 'an earlier release'} among what was live for {target} on {channel}, got none such",
            remedy=f"see `safegene audit history {target}`",
        )
    if restored.release == now.release:
        return Promotion("rollback", f"{target}: that release is live already; nothing changed", None, now.release)
    _refuse_revoked(revocation(revocations(ledger), records_resting_on(restored)))
    require_release_of(ledger.store, str(restored.release), restored.artefacts)
    draft = RecordDraft(
        "rollback",
        target,
        channel,
        f"rolled back from record {now.record.sequence} to record {restored.sequence}",
        restored.artefacts,
        {**{name: restored.predicate[name] for name in FIELDS}, **fields},
        release=restored.release,
        replaces=now.record.digest,
        restores=restored.digest,
    )
    record = _publish(ledger, signer, draft, now)
    message = f"{target}: rolled back to the release of record {restored.sequence} on {channel}, by {record.sequence}"
    return Promotion("rollback", message, record.digest, restored.release)


def record_revocation(
    ledger: Ledger, signer: CryptoSigner, digest: str, reason: str, *, fields: Mapping[str, Any]
) -> tuple[Record, tuple[LiveRecord, ...], tuple[str, ...]]:
    """Declare that a digest (of a vector, dataset, judge, checkpoint, release, ...) must not be relied on any more.

    Returns:
        The record; every live release that rests on the digest, its blast radius; and why a channel could not be read,
        for each that could not: that keeps nobody from revoking. What is touched stays live until someone rolls it
        back, but `resolve` refuses it.

    Raises:
        FormatError: it is no digest, or that of a record, on which nothing rests.
    """
    if not is_digest(digest):
        raise FormatError(f"expected the digest sha256:<64 hex> of what is revoked, got {digest!r}")
    if digest in ledger.records():
        release = ledger.read(digest).release
        raise FormatError(
            f"expected the digest of something that a release rests on, got that of a record, {digest}",
            remedy=f"revoke its release: {release}" if release else "it put nothing live",
        )
    touched, unread = _touched(ledger, digest)
    artefacts = {f"{now.record.channel}/{now.record.target}": now.release for now in touched}
    draft = RecordDraft("revocation", EVERY, EVERY, reason, artefacts, fields, revokes=digest)
    return ledger.append(draft, signer), touched, unread


def _touched(ledger: Ledger, digest: str) -> tuple[tuple[LiveRecord, ...], tuple[str, ...]]:
    touched, unread = [], []
    for channel, target in ledger.channels():
        try:
            now = live_record(ledger, target, channel)
        except LedgerError as error:
            unread.append(error.message)
        else:
            touched += [now] if now and digest in records_resting_on(now.record) else []
    return tuple(touched), tuple(unread)


def read_incumbent(path: Path, root: Path) -> Path | None:
    """The verified folder of the release that ``incumbent.json`` pins; None when nothing was live.

    Raises:
        FormatError: the file is not what `safegene.pipeline.stages.promote.pin` writes.
        DigestMismatch: a byte of the release has changed.
    """
    raw = strict_json(path.read_bytes(), where=str(path))
    if not isinstance(raw, dict) or set(raw) - {"earlier"} != {"live", "release", "candidate"}:
        raise FormatError(f"expected the keys candidate, live and release, got another form, in {path}")
    if raw["live"] is None:
        return None
    store = open_store(str(raw["release"]).rpartition("/releases/")[0], base=root)
    return open_release(store, raw["live"], cache=cache_folder())


def read_attempt(path: Path | None) -> int:
    """The present candidate's number among those of its fine-tune, by ``incumbent.json``; 1 where nothing is known.

    Raises:
        FormatError: what it says of earlier candidates is not a list of digests.
    """
    if path is None or not path.is_file():
        return 1
    raw = strict_json(path.read_bytes(), where=str(path))
    earlier = raw.get("earlier", []) if isinstance(raw, dict) else None
    if not isinstance(earlier, list) or not all(is_digest(one) for one in earlier):
        raise FormatError(f"expected the digests of earlier candidates, got {earlier!r}, in {path}")
    return 1 + len(set(earlier))


_proven: set[str] = set()


def require_conditions(store: Store) -> None:
    """Run the store's self-test, once per process and store.

    Raises:
        StoreError: it ignores conditions, and nothing may be promoted on it.
    """
    if store.uri not in _proven:
        self_test(store)
        _proven.add(store.uri)


def _judge(
    claim: PromotionClaim, channel: str, now: LiveRecord | None, ledger: Ledger, release: Release
) -> tuple[Literal["pass", "fail", "inconclusive", "error"], str]:
    """The rules, in order; the first that applies decides."""
    if claim.outcome != "pass":
        return claim.outcome, claim.reason
    used = digests_named({"artefacts": claim.artefacts, "fields": claim.fields}) | {release.digest}
    if why := revocation(revocations(ledger), used):
        return "fail", why
    candidate = claim.artefacts.get("candidate")
    if now and candidate in now.rolled_back and candidate != now.record.artefacts.get("candidate"):
        return "fail", f"a rollback up to record {now.record.sequence} took this candidate away"
    there = now.release if now and not now.revoked else None
    same_candidate = now is not None and now.record.artefacts.get("candidate") == candidate
    if claim.measured_against != there and not same_candidate:
        was = claim.measured_against or "nothing"
        return "error", f"the verdict was measured against {was} as live on {channel}, where {there or 'nothing'} is"
    return "pass", claim.reason


def _refused(target: str, outcome: RecordOutcome, reason: str, record: Record) -> PromotionRefused | StaleArtifact:
    message = f"expected a passing verdict for {target}, got {outcome}: {reason} (on record as {record.sequence})"
    error: PromotionRefused | StaleArtifact
    if outcome == "error":
        error = StaleArtifact(message, remedy="run `safegene run` to measure against what is live")
    else:
        error = PromotionRefused(message, remedy=f"see `safegene audit show {target}` and the report")
        error.exit_code = EXIT[outcome]
    error.record = record.digest
    return error


def _dry_run(claim: PromotionClaim, channel: str, outcome: RecordOutcome, reason: str, now: LiveRecord | None) -> str:
    before = f"record {now.record.sequence}" if now else "nothing"
    what = (
        f"would be promoted to {channel}, replacing {before}" if outcome == "pass" else f"would be refused ({outcome})"
    )
    return f"{claim.target}: {what}: {reason}; dry run, nothing written"


def _publish(ledger: Ledger, signer: CryptoSigner, draft: RecordDraft, now: LiveRecord | None) -> Record:
    record = ledger.append(draft, signer)
    try:
        ledger.publish(record, now.pointer if now else None)
        return record
    except PreconditionFailed:
        winner = live_record(ledger, draft.target, draft.channel)
        if winner and record.digest in {one.digest for one in winner.before}:
            return record  # the swap's reply was lost, and we had won
    number = winner.record.sequence if winner else "another writer"
    reason = f"record {number} was promoted to {draft.channel} first"
    lost = RecordDraft(
        "superseded", draft.target, draft.channel, reason, draft.artefacts, draft.fields, replaces=record.digest
    )
    error = PromotionRefused(
        f"expected to promote {draft.target} by record {record.sequence}, got another first: {reason}",
        remedy="run `safegene run` to measure against what is live now",
    )
    error.exit_code = EXIT["error"]
    error.record = ledger.append(lost, signer).digest
    raise error


def _refuse_revoked(why: str) -> None:
    if why:
        raise PromotionRefused(f"expected nothing revoked, got: {why}", remedy="roll back: `safegene rollback TARGET`")
