"""What every rival repair method gets (`Case`), gives (`Candidate`) and registers (`Method`).

Laws (tests state them): a repair leaves the model's weights bit for bit as they were; `exact` and `compose` lose
nothing. Shapes are (out, in).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.datasets.prompts import Split
from safegene.errors import EmptySample, ShapeMismatch, TensorMissing
from safegene.models.device import default_device
from safegene.models.loading import held_changes, load_model
from safegene.models.patching import low_rank_hooks, matrix_weight, patched
from safegene.repair.divergence import measure_shots, term_weights
from safegene.repair.shots import Shot, ShotKind, Shots
from safegene.repair.training import nan_last
from safegene.vectors.linalg import LowRank, Patch, concat
from safegene.workspace.baseline_params import BaselineParams
from safegene.workspace.params import CalibrateParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Case:
    """One target to repair, with all that any method may use.

    Attributes:
        names: matrices that may be changed, full names ending in ``.weight``.
        aligned: name -> W_a (out, in), float32.
        target: name -> W_t (out, in), float32; a LoRA target's factors are already added.
        safety: W_a - W_degraded as fp32 factors, not truncated; the mean over the surrogates.
        model: the target in evaluation mode.
        anchor: loads the aligned model.
        shots: of both splits; the aligned model teaches the safety shots, the target all others.
        weights: kind of shot -> weight of its term of the objective.
        seed: of whatever is drawn.
    """

    names: tuple[str, ...]
    aligned: Callable[[str], Tensor]
    target: Callable[[str], Tensor]
    safety: Patch
    model: "PreTrainedModel"
    anchor: "Callable[[], PreTrainedModel]"
    shots: Shots
    weights: Mapping[str, float]
    seed: int

    def delta(self, name: str) -> Tensor:
        """(out, in) = W_t - W_a: what the fine-tune changed.

        Raises:
            ShapeMismatch: the two have different shapes.
        """
        aligned, target = self.aligned(name), self.target(name)
        if aligned.shape != target.shape:
            shapes = f"{tuple(aligned.shape)} and {tuple(target.shape)}"
            raise ShapeMismatch(f"expected {name} of one shape in the aligned model and the target, got {shapes}")
        return target.float() - aligned.float()

    def change(self, name: str) -> LowRank:
        """The safety vector's factors for a matrix.

        Raises:
            TensorMissing: it has none.
            ShapeMismatch: they are of another shape than the matrix.
        """
        if name not in self.safety:
            raise TensorMissing(f"expected the safety vector to hold {name}, got {len(self.safety)} others")
        factors, shape = self.safety[name], tuple(self.target(name).shape)
        if factors.shape != shape:
            raise ShapeMismatch(f"expected a safety vector of shape {shape} for {name}, got {factors.shape}")
        return factors

    def taught(self, split: Split, *kinds: ShotKind) -> list[Shot]:
        """The split's shots, of these kinds only where kinds are named.

        Raises:
            EmptySample: there are none.
        """
        shots = [shot for shot in self.shots.get(split, ()) if not kinds or shot.kind in kinds]
        if not shots:
            raise EmptySample(f"expected shots{' of ' if kinds else ''}{' or '.join(kinds)} in {split!r}, got none")
        return shots


@dataclass(frozen=True, eq=False)
class Candidate:
    """A repair.

    Attributes:
        patch: matrix -> the change to add to the target; dense changes in exactly factored form.
        trained: scalars chosen or trained from data; 0 where none are.
        facts: what the method chose, as JSON has it.
    """

    patch: dict[str, LowRank]
    trained: int
    facts: Mapping[str, Any]


P = TypeVar("P", bound=BaselineParams)


@dataclass(frozen=True)
class Method(Generic[P]):
    """A rival repair method, as it registers itself.

    Attributes:
        params: the model of ``calibrate.baseline``; its ``method`` is a literal, the name of the entry point.
        repair: from parameters and a case to a candidate; it must leave the model's weights as they were.
        reference_url: the paper.
    """

    params: type[P]
    repair: Callable[[P, Case], Candidate]
    reference_url: str


def case_of(
    params: CalibrateParams,
    aligned: Path,
    model: "PreTrainedModel",
    safety: Patch,
    shots: Shots,
    dtype: str = "auto",
) -> Case:
    """What a rival method gets: the same target, delta, shots and weights as the coefficient fit.

    Args:
        params: weights of the objective, and the seed.
        aligned: folder of the aligned model.
        model: the target in evaluation mode.
        safety: W_a - W_degraded; its matrices may be changed.
        shots: of both splits.
        dtype: of the aligned model.
    """
    checkpoint, held = open_checkpoint(aligned), held_changes(model)

    def target(name: str) -> Tensor:
        weight = matrix_weight(model, name).cpu().float()
        return weight + held[name].dense() if name in held else weight

    return Case(
        names=tuple(safety),
        aligned=lambda name: checkpoint.matrix(name).float(),
        target=target,
        safety=safety,
        model=model,
        anchor=lambda: load_model(aligned, dtype=dtype, device=default_device()),
        shots=shots,
        weights=term_weights(params),
        seed=params.seed,
    )


def mean_change(surrogates: Mapping[str, Patch]) -> dict[str, LowRank]:
    """The mean of ``W_aligned - W_degraded`` over all surrogates, exact; one that changed nothing counts as 0.

    Args:
        surrogates: surrogate name -> factors of ``W_degraded - W_aligned`` by matrix name.
    """
    names = sorted({name for change in surrogates.values() for name in change})
    share = -1.0 / max(1, len(surrogates))
    return {
        name: concat([change[name].scaled(share) for change in surrogates.values() if name in change]) for name in names
    }


def exact(dense: Tensor) -> LowRank:
    """A dense change (out, in) as factors whose product is it exactly: one factor is an identity matrix.

    Raises:
        ShapeMismatch: it is no matrix.
    """
    if dense.ndim != 2:
        raise ShapeMismatch(f"expected a change of shape (out, in), got {tuple(dense.shape)}")
    matrix, (out, into) = dense.detach().float().clone(), dense.shape
    identity = torch.eye(min(out, into), device=matrix.device)
    return LowRank(identity, matrix) if out <= into else LowRank(matrix, identity)


def compose(parts: Sequence[LowRank]) -> LowRank:
    """The exact sum of changes (out, in): their factors side by side, or `exact` where that stores fewer numbers."""
    joined = concat(parts)
    out, into = joined.shape
    return joined if joined.rank <= min(out, into) else exact(joined.dense())


def validation_objective(case: Case, patch: Patch) -> float:
    """Sum over kinds of weight x mean KL (nats per token) of the repaired target on the validation shots."""
    validation = case.taught("validation")
    beside = low_rank_hooks(case.model, patch, dict.fromkeys(patch, torch.ones(())))
    with patched(case.model, patch) if case.model.dtype == torch.float32 else beside:
        return measure_shots(case.model, validation).weighted_objective(case.weights)


def best_of(case: Case, values: Sequence[float], make: Callable[[float], Candidate]) -> Candidate:
    """The candidate of the lowest `validation_objective`, the first of equals; a NaN never wins over a number.

    One candidate beside the best is in memory at a time. The value is counted as one trained scalar, and the fact
    ``validation`` tells what every value reached.

    Args:
        case: the target.
        values: what is tried.
        make: value -> candidate.

    Raises:
        EmptySample: there are no values.
    """
    best: Candidate | None = None
    reached = list[tuple[float, float]]()
    for value in values:
        candidate = make(value)
        loss = validation_objective(case, candidate.patch)
        if best is None or nan_last(loss) < min(nan_last(other) for _, other in reached):
            best = candidate
        reached.append((value, loss))
    if best is None:
        raise EmptySample("expected values to choose among, got none")
    return replace(best, trained=best.trained + 1, facts={**best.facts, "validation": list(map(list, reached))})
