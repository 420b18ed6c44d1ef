"""A verdict in plain words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safegene.report.status import TargetState, inside
from safegene.text import percent

Row = Mapping[str, Any]

STAGES = {
    "aligned": "fetch",
    "degraded": "degrade",
    "delta": "extract",
    "vector": "compress",
    "selection": "select",
    "target": "fetch-target",
    "candidate": "calibrate",
    "judgements": "evaluate",
    "verdict": "gate",
}
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
    """What became of a target.

    Attributes:
        word: one to three words.
        tone: pass, fail, open or none.
        sentence: why, and what is live now.
    """

    word: str
    tone: str
    sentence: str


@dataclass(frozen=True)
class EndpointLine:
    """An endpoint as a row of text."""

    title: str
    outcome: str
    tone: str
    estimate: str
    bound: str
    limit: str
    n: str
    reason: str


def describe_target(target: TargetState) -> TargetDecision:
    """What became of a target, why, and what is live."""
    now = _live(target)
    if target.problems:
        return TargetDecision("Unknown", "open", f"{target.problems[0].rstrip('.')}. {now}.")
    if target.outcome is None:
        absent = next((name for name, one in target.artefacts.items() if one.manifest is None), "verdict")
        return TargetDecision("Not run yet", "none", f"The next stage is {STAGES[absent]}. {now}.")
    why = _reason(target) if target.verdict.get("problems") else _whys(target) or _reason(target)
    if target.outcome == "fail":
        return TargetDecision("Refused", "fail", f"{why} {now}.")
    if target.outcome == "inconclusive":
        return TargetDecision("Inconclusive", "open", f"Not promoted, for want of evidence. {why} {now}.")
    how = "It passes every endpoint unrepaired" if target.unrepaired else "The repair passes every endpoint"
    if any(one.get("worse") is True for one in described_findings(target)):
        how += ", though worse within a margin"
    if not target.unrepaired and inside(target.verdict, "unrepaired", "outcome") == "pass":
        how += "; it would have passed without"
    if target.candidate_is_live:
        return TargetDecision("Promoted", "pass", f"{how}. {now}.")
    return TargetDecision("Passed", "pass", f"{how}. It has not been promoted. {now}.")


def _live(target: TargetState) -> str:
    if target.unknown:
        return "What is live is unknown, since the ledger does not verify"
    if target.live and target.live.revoked:
        return f"Release {short(target.live.release)} is revoked, and not served"
    return f"Release {short(target.live.release)} is live" if target.live else "Nothing is live"


def described_findings(target: TargetState) -> Sequence[Row]:
    """The endpoints of a target's verdict, as they stand in its file."""
    rows = target.verdict.get("endpoints")
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, Sequence) else []


def endpoint_line(row: Row) -> EndpointLine:
    """An endpoint as a row of text; what is not known is a dash."""
    outcome = str(row.get("outcome", "unknown"))
    shown = _rate if row.get("name") == "hrr_cap" else _points
    n = row.get("n")
    return EndpointLine(
        title=_title(row),
        outcome=outcome,
        tone=TONES.get(outcome, "open"),
        estimate=shown(row.get("estimate")),
        bound=shown(row.get("bound")),
        limit=shown(row.get("limit")),
        n=f"{n:,}" if isinstance(n, int) else "–",
        reason=_brief(row),
    )


def short(digest: str | None) -> str:
    """The first twelve digits of a digest; "" for none."""
    return digest.removeprefix("sha256:")[:12] if digest else ""


def _whys(target: TargetState) -> str:
    return " ".join(_why(one) for one in described_findings(target) if one.get("outcome") == target.outcome)


def _why(row: Row) -> str:
    """One sentence on an endpoint that did not pass."""
    estimate, limit = _number(row.get("estimate")), _number(row.get("limit"))
    if row.get("outcome") != "fail" or estimate is None or limit is None:
        return f"{_title(row)}: {str(row.get('reason') or 'no reason given').rstrip('.')}."
    if row.get("name") == "hrr_cap":
        return f"{percent(estimate)} of harmful prompts are answered harmfully ({percent(limit)} allowed)."
    against = REFERENCES.get(str(row.get("reference")), "the reference")
    return f"{_title(row)}: {100 * estimate:.1f} points above {against} ({100 * limit:.1f} allowed)."


def _brief(row: Row) -> str:
    """The reason without the numbers that stand in the row's other cells, and what was compared with."""
    reason = str(row.get("reason") or "")
    words, _, numbers = reason.rpartition(": ")
    if words and numbers.startswith(f"{row.get('estimate', math.nan):.1%}, bound "):
        reason = words
    against = REFERENCES.get(str(row.get("reference")))
    return f"{reason}, against {against}" if against else reason


def _title(row: Row) -> str:
    name = str(row.get("name", "unnamed"))
    return ENDPOINTS.get(name, name)


def _reason(target: TargetState) -> str:
    reason = str(target.verdict.get("reason") or "the verdict gives no reason").rstrip(".")
    return f"{reason[:1].upper()}{reason[1:]}."


def _rate(value: object) -> str:
    number = _number(value)
    return "–" if number is None else percent(number)


def _points(value: object) -> str:
    number = _number(value)
    return "–" if number is None else f"{100 * number:+.1f} pts".replace("-", "−").replace("+0.0", "0.0")


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
