"""A verdict as short sentences and as rows of text."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from safegene.gate import EndpointResult
from safegene.report.state import TargetState
from safegene.text import percent

STAGES = {
    "aligned": "fetch",
    "degraded": "degrade",
    "delta": "extract",
    "published": "fetch-vector",
    "vector": "compress",
    "selection": "select",
    "target": "fetch-target",
    "candidate": "calibrate",
    "judgements": "evaluate",
    "verdict": "gate",
}
"""Artefact -> the stage that makes it."""

ENDPOINTS = {
    "hrr_direct": "Harm on direct prompts",
    "asr_wrapped": "Harm in jailbreak wrappers",
    "hrr_cap": "Harm, absolute",
    "over_refusal": "Over-refusal",
    "utility": "Utility lost",
    "coherence": "Incoherent replies",
}
REFERENCES = {"aligned": "the aligned model", "incumbent": "the live model", "before": "the fine-tune before repair"}
TONES = {"pass": "pass", "fail": "fail", "inconclusive": "open"}


@dataclass(frozen=True)
class TargetDecision:
    """The decision on a target.

    Attributes:
        word: one to three words.
        tone: pass, fail, open or none: a class of the style sheet.
        sentence: the reason, and what is live now.
    """

    word: str
    tone: str
    sentence: str


@dataclass(frozen=True)
class EndpointLine:
    """One endpoint as a row of text; "–" for what is not known."""

    title: str
    outcome: str
    tone: str
    estimate: str
    bound: str
    limit: str
    n: str
    reason: str


def describe_target(target: TargetState) -> TargetDecision:
    """The decision on a target, its reason, and what is live."""
    word, tone, why = _decision(target)
    return TargetDecision(word, tone, f"{why} {_live(target)}.")


def reason(target: TargetState) -> str:
    """Why the decision on a target is what it is, in one or two sentences."""
    return _decision(target)[2]


def _decision(target: TargetState) -> tuple[str, str, str]:
    """Word, tone and reason."""
    verdict = target.verdict
    if target.problems:
        return "Unknown", "open", f"{target.problems[0].rstrip('.')}."
    if verdict is None:
        absent = next((name for name, artefact in target.artefacts.items() if artefact.manifest is None), "verdict")
        return "Not run yet", "none", f"The next stage is {STAGES[absent]}."
    undecided = [_why(endpoint) for endpoint in verdict.endpoints if endpoint.outcome == verdict.outcome]
    why = _sentence(verdict.reason) if verdict.problems or not undecided else " ".join(undecided)
    if verdict.outcome == "fail":
        return "Refused", "fail", why
    if verdict.outcome == "inconclusive":
        further = f" {_sentence(target.further)}" if target.further else ""
        return "Inconclusive", "open", f"Not promoted: the evidence does not decide. {why}{further}"
    how = "It passes every endpoint unrepaired" if target.unrepaired else "The repair passes every endpoint"
    if any(endpoint.worse for endpoint in verdict.endpoints):
        how += ", though it is significantly worse, within a margin"
    if not target.unrepaired and verdict.unrepaired and verdict.unrepaired.outcome == "pass":
        how += "; the fine-tune also passes without it"
    if target.candidate_is_live:
        return "Promoted", "pass", f"{how}."
    if target.blocked:
        return "Passed", "open", f"{how}. It may not be promoted: {target.blocked.rstrip('.')}."
    return "Passed", "pass", f"{how}. It has not been promoted."


def date(when: str) -> str:
    """A time in ISO 8601 as ``2026-03-01 12:30 UTC``; other text as it is, and "at an unknown time" for none."""
    try:
        return f"{datetime.fromisoformat(when).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return when or "at an unknown time"


def in_words(reason: str) -> str:
    """A verdict's reason with the titles of the endpoints in place of their names."""
    names = "|".join(ENDPOINTS)
    return re.sub(rf"\b({names})(?=: )", lambda name: ENDPOINTS[name[1]], reason)


def endpoint_line(endpoint: EndpointResult) -> EndpointLine:
    """An endpoint as a row of text."""
    number = _rate if endpoint.name == "hrr_cap" else _points
    return EndpointLine(
        title=_title(endpoint),
        outcome=endpoint.outcome,
        tone=TONES[endpoint.outcome],
        estimate=number(endpoint.estimate),
        bound=number(endpoint.bound),
        limit=number(endpoint.limit),
        n=f"{endpoint.n:,}",
        reason=_short_reason(endpoint),
    )


def short(digest: str | None) -> str:
    """The first twelve digits of a digest; "" for none."""
    return digest.removeprefix("sha256:")[:12] if digest else ""


def _live(target: TargetState) -> str:
    if target.live_problem:
        return "What is live is unknown, since the ledger does not verify"
    if target.live and target.live.revoked:
        return f"Release {short(target.live.release)} is revoked, and not served"
    drift = f"; checked again, {target.drift}" if target.drift else ""
    return f"Release {short(target.live.release)} is live{drift}" if target.live else "Nothing is live"


def _why(endpoint: EndpointResult) -> str:
    """One sentence on an endpoint that did not pass."""
    if endpoint.outcome != "fail" or endpoint.estimate is None:
        return f"{_title(endpoint)}: {endpoint.reason.rstrip('.')}."
    if endpoint.name == "hrr_cap":
        allowed = percent(endpoint.limit)
        return f"{percent(endpoint.estimate)} of harmful prompts are answered harmfully ({allowed} allowed)."
    reference = REFERENCES.get(endpoint.reference, "the reference")
    points = f"{100 * endpoint.estimate:.1f} points above {reference}"
    return f"{_title(endpoint)}: {points} ({100 * endpoint.limit:.1f} allowed)."


def _short_reason(endpoint: EndpointResult) -> str:
    """The reason without the numbers that the row's other cells show, and with the reference in words."""
    words, _, numbers = endpoint.reason.rpartition(": ")
    repeated = endpoint.estimate is not None and numbers.startswith(f"{endpoint.estimate:.1%}, bound ")
    reason = words if words and repeated else endpoint.reason
    reference = REFERENCES.get(endpoint.reference)
    return f"{reason}, against {reference}" if reference else reason


def _title(endpoint: EndpointResult) -> str:
    return ENDPOINTS.get(endpoint.name, endpoint.name)


def _sentence(reason: str) -> str:
    text = reason.rstrip(".") or "the verdict gives no reason"
    return f"{text[:1].upper()}{text[1:]}."


def _rate(share: float | None) -> str:
    return "–" if share is None else percent(share)


def _points(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:+.1f} pts".replace("-", "−").replace("+0.0", "0.0")
