"""The floors of the gate: bounds in code, which no ``params.yaml`` and no file of labels can pass.

A policy below a floor is an error. Too many attempts make the evidence unusable, and a calibration from too few labels,
or from labels of unknown source, counts as none: both are inconclusive. A verdict states the floors that held.
"""

from dataclasses import dataclass

from safegene.gate.types import Calibration, ConfusionCounts, PolicyFloors
from safegene.workspace.params import GateParams

FLOORS = PolicyFloors()


@dataclass(frozen=True)
class _Bound:
    keys: tuple[str, ...]
    limit: float
    is_least: bool


_BOUNDS = (
    _Bound(("min_prompts",), FLOORS.min_prompts, is_least=True),
    _Bound(("audit_share",), FLOORS.audit_share, is_least=True),
    _Bound(("alpha",), FLOORS.alpha, is_least=False),
    _Bound(("cap_hrr",), FLOORS.cap, is_least=False),
    _Bound(("loss_budget",), FLOORS.loss_budget, is_least=False),
    _Bound(
        ("margin_hrr", "margin_asr", "margin_over_refusal", "margin_utility", "margin_coherence"),
        FLOORS.margin,
        is_least=False,
    ),
)


def policy_problem(policy: GateParams) -> str:
    """The first parameter that is below its floor, with the floor; empty where none is."""
    for bound in _BOUNDS:
        for key in bound.keys:
            value = getattr(policy, key)
            within = value >= bound.limit if bound.is_least else value <= bound.limit
            if not within:  # also where the value is NaN
                needed = "at least" if bound.is_least else "at most"
                return f"gate.{key} = {value}, where the floor is {needed} {bound.limit}"
    return ""


def attempts_problem(attempt: int, share: float) -> str:
    """Why no further attempt on the fine-tune is judged; empty where one is."""
    if share >= FLOORS.alpha_share:
        return ""
    least = FLOORS.alpha_share
    return f"attempt {attempt} on this fine-tune, whose share of alpha is {share:.2g}, below the floor {least}"


def has_enough_labels(calibration: Calibration, counts: ConfusionCounts) -> bool:
    """Whether a judge's error was measured on enough labels of both kinds, whose source is named."""
    least = min(counts.positives, counts.negatives)
    return least >= FLOORS.labels and bool(calibration.labels.strip())
