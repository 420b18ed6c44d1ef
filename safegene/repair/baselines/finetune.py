"""A plain LoRA fine-tune of the target on the very shots that calibrate fits its coefficients on.

The baseline to beat: the same data, objective, teachers and choice on the validation shots, but every number of
rank-``r`` factors is trained (Hu et al. 2021, arXiv 2106.09685), not a scalar per direction. ``loss: kl`` is safegene's
objective; ``ce`` is supervised fine-tuning on the teachers' greedy tokens, with the same weights of the kinds. AdamW
without decay, a short warm-up and a cosine, gradients clipped to 1; the best factors met on the validation shots are
kept, the start (no change at all) included.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from safegene.repair.baselines.base import Candidate, Case, Method
from safegene.repair.fitting import (
    Shot,
    draw_batch,
    group_by_kind,
    measure_shots,
    next_token_log_probs,
    objective,
    stalled,
)
from safegene.repair.training import lora, schedule
from safegene.vectors.linalg import LowRank
from safegene.workspace.baseline_params import BaselineParams
from safegene.workspace.fields import Positive, Rate

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LoraParams(BaselineParams):
    """A LoRA fine-tune with early stop on the validation shots."""

    rank: Positive = 1
    learning_rate: Rate = 2e-3
    steps: Positive = 60
    loss: Literal["kl", "ce"] = "kl"
    measure_every: Positive = 10
    patience: Positive = 3


class FinetuneParams(LoraParams):
    """A LoRA fine-tune on every kind of shot."""

    method: Literal["finetune"] = "finetune"
    batch_size: Positive = 64


Loss = Callable[["PreTrainedModel", Sequence[Shot], Mapping[str, float]], Tensor]


@dataclass(frozen=True, eq=False)
class Trained:
    """The best factors met.

    Attributes:
        patch: matrix -> factors of the change.
        steps: optimiser steps behind them.
        history: (step, objective on the validation shots) of every measurement.
    """

    patch: dict[str, LowRank]
    steps: int
    history: tuple[tuple[int, float], ...]

    @property
    def objective(self) -> float:
        """Of the best factors."""
        return dict(self.history)[self.steps]


def repair(params: FinetuneParams, case: Case) -> Candidate:
    """Fine-tune on every kind of shot that has a weight.

    Raises:
        EmptySample: a kind with a weight has no shots.
    """
    shots = case.taught("fit")
    best = train(params, case, shots, weights=case.weights, batch_size=params.batch_size)
    return Candidate(
        best.patch, scalars(best.patch), {"steps": best.steps, "validation": list(map(list, best.history))}
    )


def scalars(patch: Mapping[str, LowRank]) -> int:
    """How many numbers the factors hold."""
    return sum(one.numel() for one in patch.values())


def train(
    params: LoraParams,
    case: Case,
    shots: Sequence[Shot],
    *,
    weights: Mapping[str, float],
    batch_size: int,
    stop_after: int | None = None,
) -> Trained:
    """Train LoRA factors beside the target's weights, which stay as they are.

    Args:
        params: rank, rate, steps, loss and when to measure.
        case: the target; its validation shots and weights choose the best factors.
        shots: what is trained on.
        weights: kind -> weight in the training loss.
        batch_size: shots per step, spread over the kinds.
        stop_after: end after so many steps of the schedule and measure there only.

    Raises:
        EmptySample: a kind with a weight has no shots, or there are no validation shots.
    """
    validation, kinds = case.taught("validation"), group_by_kind(shots, weights)
    random, loss, seen = torch.Generator().manual_seed(case.seed), LOSSES[params.loss], list[_Point]()
    with lora(case.model, case.names, rank=params.rank, seed=case.seed) as factors:
        optimiser = torch.optim.AdamW(factors.parameters, lr=params.learning_rate, weight_decay=0.0)

        def note(step: int) -> None:
            seen.append((measure_shots(case.model, validation).weighted_objective(case.weights), step, factors.patch()))
            seen[:] = _lean(seen)

        if stop_after is None:
            note(0)
        last = params.steps if stop_after is None else stop_after
        for step in range(1, last + 1):
            optimiser.param_groups[0]["lr"] = params.learning_rate * schedule(step, params.steps)
            value = loss(case.model, draw_batch(kinds, batch_size, random), weights)
            optimiser.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(factors.parameters, 1.0)
            optimiser.step()
            if step == last or (stop_after is None and step % params.measure_every == 0):
                note(step)
                if stalled([one[0] for one in seen], params.patience):
                    break
    _, steps, patch = min(seen, key=_rank)
    return Trained(patch, steps, tuple((step, value) for value, step, _ in seen))


_Point = tuple[float, int, dict[str, LowRank]]  # objective, step, factors


def _rank(point: _Point) -> tuple[bool, float, int]:
    """The least objective, the earliest of equals; what is not a number never wins over a number."""
    return math.isnan(point[0]), point[0], point[1]


def _lean(seen: Sequence[_Point]) -> list[_Point]:
    """The same measurements, with the factors of the best one only."""
    best = min(seen, key=_rank)
    return [one if one is best else (one[0], one[1], {}) for one in seen]


def cross_entropy(model: "PreTrainedModel", batch: Sequence[Shot], weights: Mapping[str, float]) -> Tensor:
    """() weighted sum over kinds of the mean over shots of -log p of the teacher's greedy token, nats per token."""
    keep = max(len(shot.teacher) for shot in batch)
    student = next_token_log_probs(model, [shot.ids for shot in batch], keep)
    terms = dict[str, list[Tensor]]()
    for row, shot in zip(student, batch, strict=True):
        wanted = shot.teacher.argmax(-1, keepdim=True).to(row.device)
        terms.setdefault(shot.kind, []).append(-row[keep - len(shot.teacher) :].gather(1, wanted).mean())
    return torch.stack([weights[kind] * torch.stack(some).mean() for kind, some in sorted(terms.items())]).sum()


LOSSES: Mapping[str, Loss] = {"kl": objective, "ce": cross_entropy}


METHOD = Method(FinetuneParams, repair, "https://arxiv.org/abs/2106.09685")
