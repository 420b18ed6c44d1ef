"""Distilling a safety vector: factors that lead every degraded model back to the aligned one's predictions.

On surrogate d the shared factors V are trained so that W_d + V predicts, on safety prompts, what the aligned model
does, and on benign prompts what W_d itself does: ``KL(aligned || W_d + V) + w KL(W_d || W_d + V)`` over first response
tokens (SafeGene, arXiv 2606.06519). The surrogates take turns, so V is what they have in common.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from safegene.models.patching import low_rank_hooks
from safegene.repair.fitting import Shot, divergence
from safegene.repair.training import lora, schedule
from safegene.vectors.linalg import LowRank, Patch

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
    model: "PreTrainedModel",
    students: Mapping[str, Student],
    safety: Sequence[Shot],
    *,
    start: Patch,
    steps: int,
    batch_size: int,
    learning_rate: float,
    benign_weight: float,
    seed: int,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, LowRank]:
    """Train shared factors from ``start``.

    Args:
        model: the aligned model; its weights are never changed.
        students: surrogate name -> student.
        safety: shots whose teacher is the aligned model.
        start: factors of the safety direction to begin with; they fix names and ranks.
        steps: optimiser steps; surrogate ``step mod n`` is trained at each.
        batch_size: shots per step, half safety and half benign.
        learning_rate: Adam's, at its peak.
        benign_weight: weight w of the benign term.
        seed: of the draws.
        on_step: called with (steps done, loss in nats per token).
    """
    random = torch.Generator().manual_seed(seed)
    rank = max(one.rank for one in start.values())
    turns = [students[name] for name in sorted(students)]
    one = torch.ones(())
    with lora(model, list(start), rank=rank, seed=seed, start=start) as factors:
        optimiser = torch.optim.Adam(factors.parameters, lr=learning_rate)
        for step in range(1, steps + 1):
            student = turns[(step - 1) % len(turns)]
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * schedule(step, steps)
            with low_rank_hooks(model, student.change, dict.fromkeys(student.change, one)):
                loss = mean_divergence(model, draw(safety, batch_size // 2, random))
                if benign_weight:
                    benign = draw(student.benign, batch_size // 2, random)
                    loss = loss + benign_weight * mean_divergence(model, benign)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if on_step is not None:
                on_step(step, float(loss.detach()))
        return factors.patch()


def mean_divergence(model: "PreTrainedModel", shots: Sequence[Shot]) -> torch.Tensor:
    """() mean KL(teacher || model) per response token of a batch, in nats."""
    kl, mask = divergence(model, shots)
    return kl.sum() / mask.sum()


def draw(shots: Sequence[Shot], count: int, random: torch.Generator) -> list[Shot]:
    """``count`` shots without repetition (all of them where there are fewer)."""
    return [shots[i] for i in torch.randperm(len(shots), generator=random)[: max(1, count)].tolist()]
