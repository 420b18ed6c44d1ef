"""Judgements and a policy make a verdict: pass, fail or inconclusive. Pure: no files, no network, no models.

``types`` what goes in and comes out; ``sequence`` what is asked when; ``pairs`` which replies are compared, and what is
wrong with the evidence;
``endpoints`` one question each; ``decision`` the six together; ``rates`` what is shown beside them;
``reading`` plans and judgements from JSON values; ``payload`` what a verdict's file says.
"""

from safegene.gate.decision import decide
from safegene.gate.endpoints import ENDPOINTS
from safegene.gate.payload import recovery, verdict_payload
from safegene.gate.rates import category_rates, rates
from safegene.gate.reading import evidence_from, judgement_from, plan_from
from safegene.gate.types import (
    Arm,
    Calibration,
    ConfusionCounts,
    EndpointResult,
    Judgement,
    Label,
    Plan,
    PlannedPrompt,
    Verdict,
    VerdictOutcome,
)

__all__ = [
    "ENDPOINTS",
    "Arm",
    "Calibration",
    "ConfusionCounts",
    "EndpointResult",
    "Judgement",
    "Label",
    "VerdictOutcome",
    "Plan",
    "PlannedPrompt",
    "Verdict",
    "category_rates",
    "decide",
    "evidence_from",
    "judgement_from",
    "plan_from",
    "rates",
    "recovery",
    "verdict_payload",
]
