"""What every rival repair method gets (`Case`), gives (`Candidate`) and registers (`Method`).

Laws (tests state them): a repair leaves the model's weights bit for bit as they were; `exact` and `compose` lose
nothing. Shapes are (out, in).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from safegene.datasets.prompts import Split
from safegene.errors import EmptySample, ShapeMismatch, TensorMissing
from safegene.models.patching import patched
from safegene.repair.fitting import Shot, ShotKind, measure_shots
from safegene.vectors.linalg import LowRank, Patch, concat
from safegene.workspace.baseline_params import BaselineParams

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
        shots: fit and validation shots; the aligned model teaches the safety ones, the target all others.
        weights: kind of shot -> weight of its term of the objective.
        seed: of whatever is drawn.
    """

    names: tuple[str, ...]
    aligned: Callable[[str], Tensor]
    target: Callable[[str], Tensor]
    safety: Patch
    model: "PreTrainedModel"
    anchor: "Callable[[], PreTrainedModel]"
    shots: Mapping[Split, Sequence[Shot]]
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
        found, shape = self.safety[name], tuple(self.target(name).shape)
        if found.shape != shape:
            raise ShapeMismatch(f"expected a safety vector of shape {shape} for {name}, got {found.shape}")
        return found

    def taught(self, split: Split, *kinds: ShotKind) -> list[Shot]:
        """The split's shots, of these kinds only where some are named.

        Raises:
            EmptySample: there are none.
        """
        found = [shot for shot in self.shots.get(split, ()) if not kinds or shot.kind in kinds]
        if not found:
            raise EmptySample(f"expected {' or '.join(kinds) or 'some'} shots in the split {split!r}, got none")
        return found


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


def exact(dense: Tensor) -> LowRank:
    """A dense change (out, in) as factors whose product is it exactly: the identity stands on the smaller side.

    Raises:
        ShapeMismatch: it is no matrix.
    """
    if dense.ndim != 2:
        raise ShapeMismatch(f"expected a change of shape (out, in), got {tuple(dense.shape)}")
    matrix, (out, into) = dense.detach().float().clone(), dense.shape
    one = torch.eye(min(out, into), device=matrix.device)
    return LowRank(one, matrix) if out <= into else LowRank(matrix, one)


def compose(parts: Sequence[LowRank]) -> LowRank:
    """The exact sum of changes (out, in): their factors side by side, or `exact` where that stores fewer numbers."""
    joined = concat(parts)
    out, into = joined.shape
    return joined if joined.rank <= min(out, into) else exact(joined.dense())


def objective(case: Case, patch: Patch) -> float:
    """Sum over kinds of weight x mean KL (nats per token) of the repaired target on the validation shots."""
    validation = case.taught("validation")
    with patched(case.model, patch):
        return measure_shots(case.model, validation).weighted_objective(case.weights)


def chosen(case: Case, values: Sequence[float], make: Callable[[float], Candidate]) -> Candidate:
    """The candidate of the lowest `objective`, the first of equals; a NaN never wins over a number.

    One candidate beside the best is in memory at a time. The value is counted as one trained scalar, and ``facts``
    tells what every value reached.
    """
    if not values:
        raise EmptySample("expected values to choose among, got none")
    best: tuple[bool, float] | None = None
    found, reached = None, list[list[float]]()
    for value in values:
        candidate = make(value)
        loss = objective(case, candidate.patch)
        reached.append([value, loss])
        if best is None or (math.isnan(loss), loss) < best:
            best, found = (math.isnan(loss), loss), candidate
    assert found is not None  # values is not empty
    return replace(found, trained=found.trained + 1, facts={**found.facts, "validation": reached})
