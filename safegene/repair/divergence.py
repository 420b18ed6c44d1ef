"""How far a model's predictions are from its shots' teachers: KL divergence, in nats per response token.

For a shot with teacher p over t response tokens and a model q, with v in the vocabulary, or in the bins of
`safegene.repair.distributions` where that is large:
``KL = 1/t sum_i sum_v p_i(v) (log p_i(v) - log q_i(v))``.
The objective of distillation and calibration is a weighted sum, over the kinds of shots, of the mean KL (SafeGene,
arXiv 2606.06519).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safegene.models.device import bf16_autocast
from safegene.models.forward import last_logits
from safegene.models.memory import microbatches
from safegene.repair.distributions import binned
from safegene.repair.shots import SHOT_KINDS, Shot
from safegene.workspace.params import CalibrateParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ShotLosses:
    """How far a model is from the shots' teachers.

    Attributes:
        loss: kind -> mean KL, nats per token.
        changed: kind -> share (0..1) of shots where some greedy token differs from the teacher's.
    """

    loss: Mapping[str, float]
    changed: Mapping[str, float]

    def weighted_objective(self, weights: Mapping[str, float]) -> float:
        """Sum over kinds of weight x mean KL."""
        return sum(weights.get(kind, 0.0) * loss for kind, loss in self.loss.items())


def term_weights(params: CalibrateParams) -> dict[str, float]:
    """Kind of shot -> weight of its term of the objective."""
    return dict(zip(SHOT_KINDS, (params.safety_weight, params.benign_weight, params.task_weight), strict=True))


def divergence(model: "PreTrainedModel", shots: Sequence[Shot]) -> tuple[Tensor, Tensor]:
    """KL(teacher || model) at every response token, (batch, t), in nats, and the mask (batch, t) of tokens that count.

    Shorter replies are padded on the left; their padding has KL 0 and mask False. Where the model has added tokens,
    the teacher's probability of them is 0.
    """
    keep = max(len(shot.teacher) for shot in shots)
    logits = last_logits(model, [shot.ids for shot in shots], keep)
    student = binned(logits, _tokens(shots, keep, logits))
    teacher, probability = torch.zeros_like(student), torch.zeros_like(student)
    mask = torch.zeros(student.shape[:2], dtype=torch.bool, device=student.device)
    for at, shot in enumerate(shots):
        known = _common(shot.teacher, student).to(student.device)
        teacher[at, keep - len(shot.teacher) :, : known.shape[-1]] = known
        probability[at, keep - len(shot.teacher) :, : known.shape[-1]] = known.exp()
        mask[at, keep - len(shot.teacher) :] = True
    return (probability * (teacher - student)).sum(-1), mask


def _common(teacher: Tensor, student: Tensor) -> Tensor:
    """The teacher's log-probabilities of the tokens that both have: a fine-tune may have more, or lack padding."""
    return teacher[..., : student.shape[-1]]


def _tokens(shots: Sequence[Shot], keep: int, logits: Tensor) -> Tensor | None:
    """(batch, keep, k) tokens of the teachers' bins, those of padding any k different ones; None for all tokens.

    A token that the student lacks, such as one of padding, becomes its last one: teachers give it no probability.
    """
    first = shots[0].tokens
    if first is None:
        return None
    tokens = torch.arange(first.shape[1]).repeat(len(shots), keep, 1)
    for at, shot in enumerate(shots):
        assert shot.tokens is not None
        tokens[at, keep - len(shot.teacher) :] = shot.tokens
    return tokens.clamp_max(logits.shape[-1] - 1).to(logits.device)


def mean_divergence(model: "PreTrainedModel", shots: Sequence[Shot]) -> Tensor:
    """() mean KL(teacher || model) per response token of a batch, in nats; every token weighs the same."""
    kl, mask = divergence(model, shots)
    return kl.sum() / mask.sum()


def batch_objective(
    model: "PreTrainedModel",
    batch: Sequence[Shot],
    weights: Mapping[str, float],
    slack: float = 0.0,
    counts: Mapping[str, int] | None = None,
) -> Tensor:
    """() weighted sum over kinds of the mean over shots of the mean KL per token, with a gradient.

    Without slack it is what `measure_shots` measures and `ShotLosses.weighted_objective` sums up.

    Args:
        model: the student.
        batch: shots, of any kinds.
        weights: kind -> weight of its term.
        slack: nats per token; a safety shot costs ``max(0, KL - slack)``. Safety is then a constraint to be met, and
            benign behaviour is not traded for more of it.
        counts: kind -> how many shots the whole batch has, where ``batch`` is a part of it; the objectives of all
            parts add up to that of the whole.
    """
    with bf16_autocast(model):
        kl, mask = divergence(model, batch)
    safety = torch.tensor([shot.kind == "safety" for shot in batch], device=kl.device)
    per_shot = kl.sum(1) / mask.sum(1)
    per_shot = torch.where(safety, (per_shot - slack).relu(), per_shot)
    kinds = sorted({shot.kind for shot in batch})
    terms = []
    for kind in kinds:
        values = per_shot[torch.tensor([shot.kind == kind for shot in batch])]
        share = 1.0 if counts is None else len(values) / counts[kind]
        terms.append(weights[kind] * values.mean() * share)
    return torch.stack(terms).sum()


def parts_of(model: "PreTrainedModel", batch: Sequence[Shot]) -> tuple[list[slice], bool]:
    """The microbatches in which a batch is trained on, and whether with activation checkpointing; one where it fits."""
    longest, keep = max(len(shot.ids) for shot in batch), max(len(shot.teacher) for shot in batch)
    plan = microbatches(model, len(batch), longest, keep)
    return [slice(at, at + plan.rows) for at in range(0, len(batch), plan.rows)], plan.checkpointed


@torch.no_grad()
def measure_shots(model: "PreTrainedModel", shots: Sequence[Shot], *, batch_size: int = 128) -> ShotLosses:
    """Mean KL and share of changed replies, per kind of shot, of a model as it is now.

    Batches have ``batch_size`` shots at most, and fewer where their logits would not fit (`microbatches`).
    """
    if shots:
        longest, most = max(len(shot.ids) for shot in shots), max(len(shot.teacher) for shot in shots)
        batch_size = microbatches(model, batch_size, longest, most, gradient=False).rows
    loss: dict[str, list[float]] = {}
    changed: dict[str, list[float]] = {}
    for start in range(0, len(shots), batch_size):
        batch = shots[start : start + batch_size]
        keep = max(len(shot.teacher) for shot in batch)
        logits = last_logits(model, [shot.ids for shot in batch], keep)
        tokens = _tokens(batch, keep, logits)
        student = binned(logits, tokens).cpu()
        greedy = (student if tokens is None else logits).argmax(-1).cpu()
        for at, shot in enumerate(batch):
            log_probs = student[at, keep - len(shot.teacher) :]
            known = _common(shot.teacher, log_probs)
            kl = (known.exp() * (known - log_probs[:, : known.shape[-1]])).sum(-1).mean()
            same = torch.equal(greedy[at, keep - len(shot.teacher) :], shot.greedy)
            loss.setdefault(shot.kind, []).append(float(kl))
            changed.setdefault(shot.kind, []).append(float(not same))
    return ShotLosses(
        {kind: sum(values) / len(values) for kind, values in loss.items()},
        {kind: sum(values) / len(values) for kind, values in changed.items()},
    )
