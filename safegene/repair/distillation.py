"""Distilling a safety vector: factors that lead every degraded model back to the aligned model's predictions.

On surrogate d the shared factors V are trained so that W_d + V predicts, on safety prompts, what the aligned model
does, and on benign prompts what W_d itself does: ``KL(aligned || W_d + V) + w KL(W_d || W_d + V)`` over first response
tokens (SafeGene, arXiv 2606.06519). The surrogates take turns, so V is what they have in common.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safegene.models.patching import low_rank_hooks
from safegene.repair.divergence import mean_divergence, parts_of
from safegene.repair.lora import lora
from safegene.repair.shots import Shot
from safegene.repair.training import checkpointing, optimise, schedule
from safegene.vectors.linalg import LowRank, Patch
from safegene.workspace.params import ExtractParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Student:
    """One degraded model to train on.

    Attributes:
        change: factors of ``W_d - W_a``.
        benign: shots whose teacher is this degraded model.
    """

    change: Patch
    benign: Sequence[Shot]


def distil(
    params: ExtractParams,
    model: "PreTrainedModel",
    students: Mapping[str, Student],
    safety: Sequence[Shot],
    *,
    start: Patch,
    on_step: Callable[[int, Tensor], None],
) -> dict[str, LowRank]:
    """Train shared factors from ``start`` by Adam.

    Args:
        params: steps, ``batch_size`` (half safety shots and half benign), peak learning rate, weight of the benign
            term, and the seed of the draws.
        model: the aligned model; its weights are never changed.
        students: surrogate name -> student; step s trains surrogate ``(s - 1) mod n`` in the order of names.
        safety: shots whose teacher is the aligned model.
        start: factors of the safety direction to begin with; they fix names and ranks.
        on_step: called with (steps done, () loss in nats per token).
    """
    random = torch.Generator().manual_seed(params.seed)
    turns = [students[name] for name in sorted(students)]
    whole_change = torch.ones(())

    def step_losses(step: int) -> Iterator[Tensor]:
        student = turns[(step - 1) % len(turns)]
        terms = [(1.0, draw(safety, params.batch_size // 2, random))]
        if params.benign_weight:
            terms.append((params.benign_weight, draw(student.benign, params.batch_size // 2, random)))
        with low_rank_hooks(model, student.change, dict.fromkeys(student.change, whole_change)):
            for weight, shots in terms:
                yield from _weighted_parts(model, shots, weight)

    rank = max(factors.rank for factors in start.values())
    with lora(model, list(start), rank=rank, seed=params.seed, start=start) as factors:
        optimise(
            torch.optim.Adam(factors.parameters, lr=params.learning_rate),
            step_losses,
            steps=params.steps,
            learning_rate=lambda step: params.learning_rate * schedule(step, params.steps),
            after_step=on_step,
        )
        return factors.patch()


def _weighted_parts(model: "PreTrainedModel", shots: Sequence[Shot], weight: float) -> Iterator[Tensor]:
    """() ``weight x mean KL per token`` of the shots, as the sum of the losses of their microbatches."""
    parts, checkpointed = parts_of(model, shots)
    tokens = sum(len(shot.teacher) for shot in shots)
    with checkpointing(model, on=checkpointed):
        for part in parts:
            share = sum(len(shot.teacher) for shot in shots[part]) / tokens
            yield weight * share * mean_divergence(model, shots[part])


def draw(shots: Sequence[Shot], count: int, random: torch.Generator) -> list[Shot]:
    """``count`` shots without repetition, at least 1 and at most all."""
    return [shots[at] for at in torch.randperm(len(shots), generator=random)[: max(1, count)].tolist()]
