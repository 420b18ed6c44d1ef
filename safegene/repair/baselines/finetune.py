"""A plain LoRA fine-tune of the target on the very shots that calibrate fits its coefficients on.

The baseline to beat: the same data, objective, teachers and choice on the validation shots, but every number of
rank-``r`` factors is trained (Hu et al. 2021, arXiv 2106.09685), not a scalar per direction. ``loss: kl`` is safegene's
objective; ``ce`` is supervised fine-tuning on the teachers' greedy tokens, with the same weights of the kinds. AdamW
without decay, a short warm-up and a cosine, gradients clipped to 1; the best factors met on the validation shots are
kept, the start (no change at all) included.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from safegene.models.forward import next_token_log_probs
from safegene.repair.baselines.base import Candidate, Case, Method
from safegene.repair.divergence import batch_objective, measure_shots
from safegene.repair.fitting import batch_sizes, draw_batch, group_by_kind
from safegene.repair.lora import lora
from safegene.repair.shots import Shot
from safegene.repair.training import Trajectory, optimise, schedule
from safegene.vectors.linalg import LowRank
from safegene.workspace.baseline_params import BaselineParams
from safegene.workspace.fields import Positive, PositiveFloat

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LoraParams(BaselineParams):
    """A LoRA fine-tune with early stop on the validation shots."""

    rank: Positive = 1
    learning_rate: PositiveFloat = 2e-3
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
class TrainedLora:
    """The best factors measured.

    Attributes:
        patch: matrix -> factors of the change.
        steps: optimiser steps behind them.
        history: (steps done, objective on the validation shots) of every measurement.
    """

    patch: dict[str, LowRank]
    steps: int
    history: tuple[tuple[int, float], ...]

    @property
    def objective(self) -> float:
        """Of the best factors."""
        return dict(self.history)[self.steps]

    def candidate(self, **facts: Any) -> Candidate:
        """As a baseline's repair; the facts tell its steps and history too."""
        trained = sum(factors.numel() for factors in self.patch.values())
        return Candidate(
            self.patch, trained, {**facts, "steps": self.steps, "validation": list(map(list, self.history))}
        )


def repair(params: FinetuneParams, case: Case) -> Candidate:
    """Fine-tune on every kind of shot that has a weight.

    Raises:
        EmptySample: a kind with a weight has no shots.
    """
    shots = case.taught("fit")
    return train(params, case, shots, weights=case.weights, batch_size=params.batch_size).candidate()


def train(
    params: LoraParams,
    case: Case,
    shots: Sequence[Shot],
    *,
    weights: Mapping[str, float],
    batch_size: int,
    stop_after: int | None = None,
) -> TrainedLora:
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
    random, loss = torch.Generator().manual_seed(case.seed), LOSSES[params.loss]
    last = params.steps if stop_after is None else stop_after
    with lora(case.model, case.names, rank=params.rank, seed=case.seed) as factors:
        trajectory = Trajectory(factors.patch)

        def measure(step: int) -> None:
            trajectory.record(step, measure_shots(case.model, validation).weighted_objective(case.weights))

        def after_step(step: int, _: Tensor) -> bool:
            if step != last and (stop_after is not None or step % params.measure_every):
                return False
            measure(step)
            return trajectory.stalled(params.patience)

        if stop_after is None:
            measure(0)
        optimise(
            torch.optim.AdamW(factors.parameters, lr=params.learning_rate, weight_decay=0.0),
            lambda _: [loss(case.model, draw_batch(kinds, batch_sizes(kinds, batch_size), random), weights)],
            steps=last,
            learning_rate=lambda step: params.learning_rate * schedule(step, params.steps),
            max_norm=1.0,
            after_step=after_step,
        )
    return TrainedLora(trajectory.best, trajectory.best_step, tuple(trajectory.history))


def cross_entropy(model: "PreTrainedModel", batch: Sequence[Shot], weights: Mapping[str, float]) -> Tensor:
    """() weighted sum over kinds of the mean over shots of -log p of the teacher's greedy token, nats per token."""
    keep = max(len(shot.teacher) for shot in batch)
    student = next_token_log_probs(model, [shot.ids for shot in batch], keep)
    terms = dict[str, list[Tensor]]()
    for log_probs, shot in zip(student, batch, strict=True):
        greedy = shot.greedy[:, None].to(log_probs.device)
        terms.setdefault(shot.kind, []).append(-log_probs[keep - len(shot.teacher) :].gather(1, greedy).mean())
    return torch.stack([weights[kind] * torch.stack(losses).mean() for kind, losses in sorted(terms.items())]).sum()


LOSSES: Mapping[str, Loss] = {"kl": batch_objective, "ce": cross_entropy}

METHOD = Method(FinetuneParams, repair, "https://arxiv.org/abs/2106.09685")
