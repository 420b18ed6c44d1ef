"""The repair of one target: by fitted coefficients of the safety vector, or by a baseline."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from safegene.models.patching import low_rank_hooks
from safegene.repair.baselines import repair
from safegene.repair.baselines.base import Case
from safegene.repair.coefficients import Coefficients, new_coefficients
from safegene.repair.diagnosis.findings import MAX_LOSS
from safegene.repair.divergence import ShotLosses, measure_shots, term_weights
from safegene.repair.fit_log import FitLog
from safegene.repair.fitting import Fitted, fit_coefficients
from safegene.repair.mining import Miner, Mining, mine
from safegene.repair.shots import Shots
from safegene.vectors.linalg import Patch
from safegene.workspace.params import CalibrateParams
from safegene.workspace.progress import log_progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
ALREADY_SAFE = "the target answers safety prompts as the aligned model does"
NO_IMPROVEMENT = "no coefficients that were tried improve on the target as it is"
FIRST_FIT = "fit"
SLOWER = (1.0, 0.3, 0.1)  # of the learning rate, in turn, where nothing that a fit met was better than no change
UNCHANGED = 0.02  # share of safety replies that differ from the aligned model's, up to which nothing is repaired


@dataclass(frozen=True)
class RepairResult:
    """What repairing a target gave.

    Attributes:
        fitted: the change, its coefficients and how they were reached; None where the target is left as it is.
        before: the unrepaired target on the validation shots.
        after: the repaired one.
        reason: why it was not repaired; empty when it was.
        facts: what a baseline chose; of a fit the learning rate, where it was lowered.
        mining: what mining found; None where nothing was mined.
    """

    fitted: Fitted | None
    before: ShotLosses
    after: ShotLosses
    reason: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    mining: Mining | None = None


def fit_target(
    params: CalibrateParams,
    model: "PreTrainedModel",
    numbers: float,
    patch: Patch,
    shots: Shots,
    miner: Miner | None = None,
    parts: FitLog | None = None,
) -> RepairResult:
    """Fit the coefficients of a target, or leave it as it is where it needs no repair or none helps.

    The objective decides: the weighted KL on the validation shots must be lower than the unrepaired target's.

    Args:
        params: of the fit.
        model: the target in evaluation mode; its weights are never changed.
        numbers: the most numbers that the adapter may hold.
        patch: the safety vector's factors.
        shots: of both splits.
        miner: adds shots from a pool and goes on; None adds none.
        parts: keeps the first fit and every round of mining, so that a killed calibration goes on; None keeps none.

    Raises:
        ParamsError: ``numbers`` are too few for one matrix.
        EmptySample: a kind of shot with a weight has no shots.
    """
    weights, before = term_weights(params), measure_shots(model, shots["validation"])
    if before.changed["safety"] <= UNCHANGED:
        return _not_repaired(before, ALREADY_SAFE)

    coefficients = new_coefficients(params, patch, numbers)
    kept = parts and parts.restore(FIRST_FIT, coefficients)
    fitted, facts = kept or _first_fit(params, model, coefficients, shots)
    if parts and not kept:
        parts.keep(FIRST_FIT, coefficients, fitted, facts)
    mining, after = None, _measured(model, coefficients, shots)
    if miner is not None:
        doubtful = max(after.loss["safety"], after.loss.get("benign", 0.0)) > MAX_LOSS
        fitted, mining = mine(miner, coefficients, fitted, shots, doubtful=doubtful, log_of_parts=parts)
        after = _measured(model, coefficients, shots)
    if not after.weighted_objective(weights) < before.weighted_objective(weights):  # also when it is not a number
        return _not_repaired(before, NO_IMPROVEMENT)
    return RepairResult(fitted, before, after, "", facts, mining)


def _first_fit(
    params: CalibrateParams, model: "PreTrainedModel", coefficients: Coefficients, shots: Shots
) -> tuple[Fitted, dict[str, Any]]:
    """The fit, with a lower learning rate where the one before only led away; and that rate, where it was lowered.

    Which rate diverges depends on the model and on how many numbers are fitted.
    """
    weights = term_weights(params)

    def on_measure(step: int, losses: ShotLosses) -> None:
        log_progress(log, "fit, steps", step, params.steps, f"objective {losses.weighted_objective(weights):.3f}")

    for share in SLOWER:
        own = params.model_copy(update={"learning_rate": share * params.learning_rate})
        fitted = fit_coefficients(own, model, coefficients, shots["fit"], shots["validation"], on_measure=on_measure)
        if fitted.steps:
            break
        log.warning("the fit with learning rate %g met nothing better than no change", own.learning_rate)
    return fitted, {} if share == 1.0 else {"learning_rate": own.learning_rate}


def _measured(model: "PreTrainedModel", coefficients: Coefficients, shots: Shots) -> ShotLosses:
    with torch.no_grad(), coefficients.hooked(model):
        return measure_shots(model, shots["validation"])


def run_baseline(params: CalibrateParams, case: Case) -> RepairResult:
    """The repair of ``params.baseline``, accepted even where it is worse than the unrepaired target.

    Its ``history`` has two measurements, at "steps" 0 and 1: before and after the repair.
    """
    assert params.baseline is not None
    before = measure_shots(case.model, case.shots["validation"])
    if before.changed["safety"] <= UNCHANGED:
        return _not_repaired(before, ALREADY_SAFE)
    candidate = repair(params.baseline, case)
    if not candidate.patch:
        return _not_repaired(before, f"{params.baseline.method} changes nothing")
    with low_rank_hooks(case.model, candidate.patch, dict.fromkeys(candidate.patch, torch.ones(()))):
        after = measure_shots(case.model, case.shots["validation"])
    fitted = Fitted(
        patch=candidate.patch,
        coefficients={},
        direction_sizes={name: (1.0,) for name in candidate.patch},
        alphas=dict.fromkeys(candidate.patch, 1.0),
        trained=candidate.trained,
        steps=1,
        history=((0, before.weighted_objective(case.weights)), (1, after.weighted_objective(case.weights))),
    )
    return RepairResult(fitted, before, after, "", candidate.facts)


def _not_repaired(before: ShotLosses, reason: str) -> RepairResult:
    log.warning("not repaired: %s", reason)
    return RepairResult(None, before, before, reason)
