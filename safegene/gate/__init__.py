"""The gate: judgements and a policy give a verdict (pass, fail or inconclusive). No files, no network, no models.

``types``: what goes in and comes out. ``reading``: plan and judgements from bytes. ``ordering``: which prompts are
asked when. ``pairs``: which replies are compared. ``problems``: what is wrong with the evidence. ``floors``: what no
policy can pass. ``endpoints``: the tests. ``statistics``: their bounds and p-values. ``adjudication``: the second
judge. ``decision``: the verdict. ``rates``: what is shown beside it. ``payload``: ``verdict.json``. ``history``: how
the verdict came about. ``further``: how many more prompts would decide it.
"""

from safegene.gate.decision import decide
from safegene.gate.further import FurtherPrompts, further_prompts
from safegene.gate.ordering import ENDPOINTS
from safegene.gate.pairs import JudgementIndex, index_judgements
from safegene.gate.payload import VerdictFile, recovery, verdict_payload
from safegene.gate.rates import Rate, category_rates, rates
from safegene.gate.reading import evidence_from
from safegene.gate.types import (
    Arm,
    Calibration,
    ConfusionCounts,
    EndpointResult,
    Judgement,
    JudgementRow,
    JudgeStatement,
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
    "FurtherPrompts",
    "JudgeStatement",
    "Judgement",
    "JudgementIndex",
    "JudgementRow",
    "Label",
    "Plan",
    "PlannedPrompt",
    "Rate",
    "Verdict",
    "VerdictFile",
    "VerdictOutcome",
    "category_rates",
    "decide",
    "evidence_from",
    "further_prompts",
    "index_judgements",
    "rates",
    "recovery",
    "verdict_payload",
]
