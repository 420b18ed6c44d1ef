"""Stage ``promote``: check the evidence, put the candidate live if its verdict allows it, and record the attempt.

A promotion needs a passing verdict on exactly these digests: `safegene.ledger.evidence` verifies every artefact byte
for byte, checks that each was made from the present ones, and computes the verdict again from the judgements; what was
live when the candidate was evaluated (``incumbent.json``) must still be live. DVC does not run this stage, since an
experiment must not promote.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from safegene.errors import LedgerError, PromotionRefused, SafegeneError, StoreError, as_safegene_error
from safegene.gate import VerdictFile
from safegene.ledger.approval import PendingPromotion, find_pending
from safegene.ledger.approval import approve as approve_pending
from safegene.ledger.approval import reject as reject_pending
from safegene.ledger.attempts import present_attempt
from safegene.ledger.chain import Ledger, open_ledger
from safegene.ledger.evidence import Evidence, confirm_verdict, gather_evidence, present_artefacts, require_sealed
from safegene.ledger.incumbent import write_incumbent
from safegene.ledger.keys import load_signer
from safegene.ledger.pointers import SEEN
from safegene.ledger.promotion import (
    AttemptResult,
    ResolvedRelease,
    newest_record,
    record_promotion,
    record_refusal,
    resolve_release,
)
from safegene.ledger.record import Record
from safegene.ledger.record_fields import Run, Stated, code_field, evidence_fields, now, run_field
from safegene.ledger.release import release_files
from safegene.ledger.revocation import AffectedRollback, Revocation, record_revocation, roll_back_affected
from safegene.ledger.rollback import record_rollback
from safegene.ledger.rules import PromotionClaim
from safegene.ledger.snapshot import keep_seen
from safegene.ledger.trust import parse_override
from safegene.workspace.layout import Workspace, cache_folder

COPIED = ("target", "candidate", "judgements", "verdict", "aligned", "published")
"""Artefacts that a release holds with all their files; ``published`` only where the vector was."""
MANIFEST_ONLY = ("vector", "selection")
"""Artefacts of which a release holds only the manifest."""


def promote(
    workspace: Workspace,
    target: str,
    *,
    channel: str | None = None,
    run: Run | None = None,
    dry_run: bool = False,
    override: tuple[str, str] | None = None,
    stated: Stated | None = None,
) -> AttemptResult:
    """Put the target's candidate live on a channel if its verdict allows it, and record the attempt in any case.

    Args:
        workspace: the pipeline repository; section ``promote`` of its parameters names channel, ledger and public key.
        target: the target's name.
        channel: another channel than that of the section.
        run: what is known of the run.
        dry_run: say what would happen, and write nothing.
        override: reason and last day (YYYY-MM-DD) of a promotion although the verdict is no pass; others must approve.
        stated: what the caller states for the record.

    Returns:
        The result; of outcome ``pending`` where others must sign first (see `approve`).

    Raises:
        PromotionRefused: the verdict is not a pass (exit code 3; 4 if inconclusive), or another promotion was first.
        ParamsError: there is no such target.
        ArtifactError: an artefact is missing, changed, or was made from something that has changed since.
        LedgerError, StoreError: the ledger cannot be read or written; then there is no record.

    Example:
        >>> promotion = safegene.promote(ws, "sentiment")
        >>> promotion.outcome
        'pass'
    """
    workspace.require_target(target)
    ledger, channel = _open(workspace), channel or workspace.params.promote.channel
    signer = load_signer(ledger.keys)
    try:
        before = newest_record(ledger, target, channel)
        run_now, said = {"start": now(), **(run or {})}, stated or Stated()
        claim = _claim(workspace, target, run_now, said, before, goes_live=override is not None)
    except SafegeneError as error:
        if not dry_run:
            record_error(workspace, target, error, channel=channel, run=run)
        raise
    if override:
        claim = replace(claim, override=parse_override(*override, verdict=claim.outcome))
    if dry_run:
        return record_promotion(ledger, signer, claim, channel, dry_run=True)
    with _keeping_seen(ledger, workspace) as done:
        result = record_promotion(ledger, signer, claim, channel)
        done += [result.message, result.record or ""]
    return result


def confirmed_outcome(workspace: Workspace, target: str) -> str:
    """The outcome of the present verdict, after the checks of a promotion; nothing is recorded, no key is needed.

    Raises:
        ArtifactError, DigestMismatch: the evidence is incomplete, changed or stale, or not made by this cache's key.
    """
    return _confirmed(workspace, target)[1].outcome


def promote_attempt(workspace: Workspace, target: str, *, run: Run | None = None) -> str:
    """`promote`, with a refusal as a word: ``pass``, ``fail`` or ``inconclusive``; other errors are raised."""
    try:
        return promote(workspace, target, run=run).outcome
    except PromotionRefused as refused:
        words = {3: "fail", 4: "inconclusive"}
        if refused.exit_code not in words:
            raise
        return words[refused.exit_code]


def record_error(
    workspace: Workspace, target: str, error: SafegeneError, *, channel: str | None = None, run: Run | None = None
) -> None:
    """Record that an attempt ended in an error, unless the error is on record already.

    ``error.record`` is the record's digest afterwards. Where the record cannot be written, ``error.remedy`` says why.
    """
    if error.record:
        return
    fields = {"run": run_field(run), "code": code_field(workspace, target, run)}
    claim = PromotionClaim(target, "error", error.summary, present_artefacts(workspace, target), fields)
    try:
        ledger, channel = _open(workspace), channel or workspace.params.promote.channel
        record, new = record_refusal(ledger, load_signer(ledger.keys), claim, channel)
        error.record = record.digest
        if not new:
            same = f"unchanged since record {record.sequence}, so not recorded again"
            error.remedy = f"{error.remedy}; {same}".removeprefix("; ")
        keep_seen(ledger, workspace.root)
    except (LedgerError, StoreError, OSError) as reason:
        why = as_safegene_error(reason).message
        error.remedy = f"{error.remedy}; the attempt is not on record either: {why}".removeprefix("; ")


def pending(workspace: Workspace, name: str) -> PendingPromotion:
    """A promotion that waits for signatures; see `safegene.ledger.approval.find_pending`."""
    return find_pending(_open(workspace), name)


def approve(workspace: Workspace, name: str) -> AttemptResult:
    """Sign a promotion of somebody else, and put it live if that was the last signature needed.

    See `safegene.ledger.approval.approve`; ``name`` is the number or the digest of the ``pending`` record.
    """
    ledger = _open(workspace)
    with _keeping_seen(ledger, workspace) as done:
        result = approve_pending(ledger, load_signer(ledger.keys), find_pending(ledger, name))
        done += [result.message, result.record or ""]
    return result


def reject(workspace: Workspace, name: str, reason: str) -> AttemptResult:
    """Refuse a promotion that waits for signatures; see `safegene.ledger.approval.reject`."""
    ledger = _open(workspace)
    with _keeping_seen(ledger, workspace) as done:
        result = reject_pending(ledger, load_signer(ledger.keys), find_pending(ledger, name), reason)
        done += [result.message, result.record or ""]
    return result


def rollback(
    workspace: Workspace,
    target: str,
    *,
    to: str | None = None,
    channel: str | None = None,
    run: Run | None = None,
) -> AttemptResult:
    """Put live again what was live before; see `safegene.ledger.rollback.record_rollback`."""
    ledger, channel = _open(workspace), channel or workspace.params.promote.channel
    with _keeping_seen(ledger, workspace) as done:
        signer, fields = load_signer(ledger.keys), {"run": run_field(run)}
        result = record_rollback(ledger, signer, target, channel, fields=fields, to=to)
        done += [result.message, result.record or ""]
    return result


def revoke(workspace: Workspace, digest: str, reason: str, *, run: Run | None = None) -> Revocation:
    """Record that a digest must not be relied on; see `safegene.ledger.revocation.record_revocation`."""
    ledger = _open(workspace)
    with _keeping_seen(ledger, workspace) as done:
        fields = {"run": run_field(run)}
        revocation = record_revocation(ledger, load_signer(ledger.keys), digest, reason, fields=fields)
        done.append(f"{digest} is revoked")
    return revocation


def roll_back_revoked(
    workspace: Workspace, revocation: Revocation, *, run: Run | None = None
) -> tuple[AffectedRollback, ...]:
    """Roll back every release that a revocation affected; see `safegene.ledger.revocation.roll_back_affected`."""
    ledger = _open(workspace)
    with _keeping_seen(ledger, workspace) as done:
        signer, fields = load_signer(ledger.keys), {"run": run_field(run)}
        rollbacks = roll_back_affected(ledger, signer, revocation.affected, fields=fields)
        done.append("what the revocation affected is rolled back")
    return rollbacks


def resolve(workspace: Workspace, target: str, *, channel: str | None = None) -> ResolvedRelease:
    """The release that a server should load; see `safegene.ledger.promotion.resolve_release`."""
    return resolve_release(_open(workspace), target, channel or workspace.params.promote.channel)


def pin_incumbent(workspace: Workspace, target: str) -> str | None:
    """Write what is live for the target to ``incumbent.json``; see `safegene.ledger.incumbent.write_incumbent`."""
    params = workspace.params.promote
    return write_incumbent(
        workspace.incumbent(target),
        _open(workspace),
        params.ledger,
        target=target,
        channel=params.channel,
        attempt=present_attempt(workspace, target),
    )


def _open(workspace: Workspace) -> Ledger:
    return open_ledger(workspace.params.promote, workspace.root, cache=cache_folder() / "records")


@contextmanager
def _keeping_seen(ledger: Ledger, workspace: Workspace) -> Iterator[list[str]]:
    """Write ``ledger.seen`` after the block, also where the attempt was refused.

    The block appends what it did, and the digest of the record, to the list: an error after it must not hide that.
    """
    done: list[str] = []
    try:
        yield done
    except SafegeneError:
        with suppress(LedgerError, StoreError, OSError):  # the caller must get the refusal, not this error
            keep_seen(ledger, workspace.root)
        raise
    try:
        keep_seen(ledger, workspace.root)
    except (SafegeneError, OSError) as reason:
        said = as_safegene_error(reason)
        error = SafegeneError(
            f"{done[0]}; but expected to write {SEEN}, got: {said.message}",
            remedy=f"what was done stays; {said.remedy or f'the next command on this ledger writes {SEEN}'}",
        )
        error.record = done[1] if len(done) > 1 else ""
        raise error from None


def _confirmed(workspace: Workspace, target: str, *, goes_live: bool = False) -> tuple[Evidence, VerdictFile]:
    """The evidence, and its verdict computed again; sealed where it passes or ``goes_live``."""
    evidence = gather_evidence(workspace, target)
    verdict = confirm_verdict(evidence, workspace.params)
    if verdict.outcome == "pass" or goes_live:
        require_sealed(workspace, evidence, target)
    return evidence, verdict


def _claim(
    workspace: Workspace, target: str, run: Run, stated: Stated, before: Record | None, *, goes_live: bool
) -> PromotionClaim:
    """The claim of the present evidence; ``goes_live`` whether it could although its verdict is no pass."""
    evidence, verdict = _confirmed(workspace, target, goes_live=goes_live)
    return PromotionClaim(
        target=target,
        outcome=verdict.outcome,
        reason=verdict.reason,
        artefacts=evidence.digests,
        fields=evidence_fields(evidence, verdict, workspace, target, run, stated, before),
        files=release_files(
            {name: (evidence.folders[name], evidence.manifests[name]) for name in COPIED if name in evidence.manifests},
            {name: (evidence.folders[name], evidence.manifests[name]) for name in MANIFEST_ONLY},
        ),
        measured_against=evidence.incumbent,
        attempt=present_attempt(workspace, target),
        attempt_number=verdict.attempt.number if verdict.attempt else 1,
        signatures=workspace.params.promote.signatures,
    )
