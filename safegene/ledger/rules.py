"""The rules by which a claim may go live on a channel. No statistics here, and nothing is written.

The rules, in this order:

1. the evidence must have passed (see `safegene.pipeline.stages.promote` for how it is checked), or an override passes
   over its verdict;
2. neither the release nor anything that it rests on may be revoked;
3. a candidate that was rolled back since the last promotion is not promoted, unless a rollback put it live again;
4. the verdict must have been measured against what is live now, or against nothing where that is revoked; where the
   live candidate is this one, any reference will do;
5. the verdict must count every earlier attempt on this fine-tune that is on record, see `safegene.ledger.attempts`.

An override passes over the first rule only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safegene.errors import PromotionRefused, StaleArtifact
from safegene.ledger.attempts import Attempt
from safegene.ledger.chain import Ledger
from safegene.ledger.live import LiveRecord, digests_named, earlier_candidates, revocations, why_revoked
from safegene.ledger.record import Record, RecordOutcome
from safegene.ledger.trust import OVERRIDABLE, Override

EXIT = {"fail": 3, "inconclusive": 4, "error": 1}

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
        override: why it may go live although ``outcome`` is no pass; others must approve it.
        signatures: how many signatures of different persons the workspace asks for.
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
    override: Override | None = None
    signatures: int = 1

    @property
    def goes_live(self) -> RecordOutcome:
        """Outcome of the record that puts the claim live if the rules allow it."""
        return "override" if self.override else "pass"


def raise_if_revoked(why: str, remedy: str) -> None:
    """Raise if something is revoked; ``why`` is the answer of `why_revoked`, empty for nothing.

    Raises:
        PromotionRefused: something is; ``remedy`` leads to something that is not.
    """
    if why:
        raise PromotionRefused(f"expected nothing revoked, got: {why}", remedy=remedy)


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


def ruling_on(claim: PromotionClaim, channel: str, live: LiveRecord | None, ledger: Ledger, release: str) -> Ruling:
    """The first rule that forbids the promotion of a release, or a pass."""
    target = claim.target
    if claim.outcome != "pass" and not (claim.override and claim.outcome in OVERRIDABLE):
        remedy = f"see `safegene gate show {target}`, or the report (`safegene report`)"
        return Ruling(claim.outcome, claim.reason, remedy)
    used = digests_named({"artefacts": claim.artefacts, "fields": claim.fields}) | {release}
    if reason := why_revoked(revocations(ledger), used):
        return Ruling("fail", reason, _replacing(claim, reason))
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
    if claim.override:
        return Ruling("pass", f"override of {claim.outcome} until {claim.override.expires}: {claim.override.reason}")
    return Ruling("pass", claim.reason)


REPLACE = {
    "target": "name its next version, `safegene target add {target} SOURCE --task TASK`",
    "aligned": "set family.aligned in params.yaml to another model",
    "degraded": "change section degrade of params.yaml, such as its seed",
    "delta": "change section degrade or extract of params.yaml, such as degrade.seed",
    "vector": "change section compress or degrade of params.yaml, such as degrade.seed",
    "selection": "change section select of params.yaml",
    "candidate": "change section calibrate of params.yaml, such as its seed",
    "judgements": "change the gate's prompts or section evaluate of params.yaml",
    "verdict": "change the gate's prompts or section evaluate of params.yaml",
}
"""Artefact -> what gives another one in the place of a revoked one."""


def _replacing(claim: PromotionClaim, reason: str) -> str:
    """What replaces the revoked digest that a reason names."""
    names = [name for name, digest in claim.artefacts.items() if digest in reason]
    what = REPLACE.get(names[0], "") if names else ""
    what = what.format(target=claim.target) or "replace the set, judge or model that has this digest"
    return f"{what}, then `safegene run {claim.target}` makes another candidate"


def refusal_error(
    claim: PromotionClaim, channel: str, ruling: Ruling, record: Record, *, new: bool
) -> PromotionRefused | StaleArtifact:
    """What a refused attempt raises; ``new`` says whether the record was written now, or for an earlier attempt."""
    expected = f"expected a passing verdict for {claim.target}, got {ruling.outcome}"
    if claim.outcome == "pass":
        expected = f"expected to promote {claim.target} to {channel}, got a refusal ({ruling.outcome})"
    see = "see" if new else "unchanged, so not recorded again: see"
    message = f"{expected}: {ruling.reason}; {see} record {record.sequence}"
    error: PromotionRefused | StaleArtifact
    if ruling.outcome == "error":
        error = StaleArtifact(message, remedy=ruling.remedy)
    else:
        error = PromotionRefused(message, remedy=ruling.remedy)
        error.exit_code = EXIT[ruling.outcome]
    error.record = record.digest
    return error
