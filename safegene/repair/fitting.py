"""Fitting of coefficients: the only numbers trained per target multiply the safety vector's fixed low-rank factors.

The change beside the target's weights is that of `repair.coefficients`. The loss is of the paper's kind (SafeGene,
arXiv 2606.06519): on safety shots, KL from the *aligned* model's next-token distribution over its own first
response tokens; on benign and task shots, KL from the *unrepaired* target's over its own. Nothing else has a gradient,
so a step costs a forward pass and a backward pass through activations only.

Laws (tests state them): the model's weights are never changed; the same shots and settings give the same coefficients
on the same machine; those returned are the best of those measured on the validation shots, the start included.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from safegene.errors import EmptySample
from safegene.models.device import bf16_autocast
from safegene.repair.coefficients import Coefficients
from safegene.vectors.linalg import LowRank

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ShotKind = Literal["safety", "benign", "task"]
SHOT_KINDS: tuple[ShotKind, ...] = ("safety", "benign", "task")


@dataclass(frozen=True, eq=False)
class Shot:
    """One prompt with the first tokens of a reply and what the reply's own model predicted there.

    Attributes:
        id: the prompt's id.
        kind: which term of the loss it belongs to.
        ids: tokens of the prompt and of the reply's first t tokens, but for the last.
        teacher: (t, vocabulary) log-probabilities of the teacher at the t positions that predict the reply.
    """

    id: str
    kind: ShotKind
    ids: tuple[int, ...]
    teacher: Tensor


@dataclass(frozen=True)
class ShotLosses:
    """How far a model is from the shots' teachers.

    Attributes:
        loss: kind -> mean KL (nats per token).
        changed: kind -> share of shots where some greedy token differs from the teacher's.
    """

    loss: Mapping[str, float]
    changed: Mapping[str, float]

    def weighted_objective(self, weights: Mapping[str, float]) -> float:
        """Sum over kinds of weight x mean KL."""
        return sum(weights.get(kind, 0.0) * loss for kind, loss in self.loss.items())


@dataclass(frozen=True)
class Fitted:
    """The outcome of `fit`.

    Attributes:
        patch: matrix name -> change, the coefficients folded in.
        coefficients: the numbers fitted, as JSON, by matrix.
        sizes: matrix name -> how much of each direction of the vector is in the change.
        alphas: matrix name -> how much of the vector itself.
        trained: how many numbers were fitted.
        steps: optimiser steps behind them.
        history: objective on the validation shots at every measurement, the start first.
        size: how much of the change that was fitted is kept; see `least`.
    """

    patch: Mapping[str, LowRank]
    coefficients: Mapping[str, Any]
    sizes: Mapping[str, Sequence[float]]
    alphas: Mapping[str, float]
    trained: int
    steps: int
    history: tuple[tuple[int, float], ...]
    size: float = 1.0


def next_token_log_probs(model: "PreTrainedModel", rows: Sequence[Sequence[int]], keep: int) -> Tensor:
    """(batch, keep, vocabulary) log-probabilities at the last ``keep`` positions of each row, float32.

    Rows are left padded, so their last positions line up; positions count from each row's own start.
    """
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    places = (mask.cumsum(1) - 1).clamp_min(0)
    out = model(input_ids=ids, attention_mask=mask, position_ids=places, logits_to_keep=keep, use_cache=False)
    return F.log_softmax(out.logits[:, -keep:].float(), dim=-1)


@torch.no_grad()
def make_shots(
    model: "PreTrainedModel",
    encoded: Sequence[tuple[str, Sequence[int], Sequence[int]]],
    *,
    kind: ShotKind,
    response_tokens: int,
    batch_size: int = 64,
) -> list[Shot]:
    """Shots whose teacher is ``model``.

    Args:
        model: the teacher.
        encoded: (prompt id, tokens of the prompt, tokens of the teacher's reply); an empty reply has nothing to match.
        kind: the term of the loss.
        response_tokens: how many tokens of each reply count.
        batch_size: rows per forward pass.

    Raises:
        EmptySample: no reply has a token.
    """
    kept = [(i, list(p), list(r)[:response_tokens]) for i, p, r in encoded if len(r)]
    if not kept:
        raise EmptySample(f"expected {kind} shots with replies, got none")
    shots = []
    for start in range(0, len(kept), batch_size):
        batch = kept[start : start + batch_size]
        rows = [p + r[:-1] for _, p, r in batch]
        keep = max(len(r) for _, _, r in batch)
        logs = next_token_log_probs(model, rows, keep).cpu()
        for (name, _, reply), row, log in zip(batch, rows, logs, strict=True):
            shots.append(Shot(name, kind, tuple(row), log[keep - len(reply) :].clone()))
    return shots


def divergence(model: "PreTrainedModel", shots: Sequence[Shot]) -> tuple[Tensor, Tensor]:
    """KL(teacher || model) at every response token (batch, keep), in nats, and the mask (batch, keep) of real ones."""
    keep = max(len(s.teacher) for s in shots)
    student = next_token_log_probs(model, [s.ids for s in shots], keep)
    teacher = torch.zeros_like(student)
    mask = torch.zeros(student.shape[:2], dtype=torch.bool, device=student.device)
    for at, shot in enumerate(shots):
        teacher[at, keep - len(shot.teacher) :] = shot.teacher.to(student.device)
        mask[at, keep - len(shot.teacher) :] = True
    kl = (teacher.exp() * (teacher - student)).sum(-1)
    return kl.masked_fill(~mask, 0.0), mask


@torch.no_grad()
def measure_shots(model: "PreTrainedModel", shots: Sequence[Shot], *, batch_size: int = 128) -> ShotLosses:
    """Mean KL and the share of changed replies, per kind of shot, of a model as it is now."""
    loss: dict[str, list[float]] = {}
    changed: dict[str, list[float]] = {}
    for start in range(0, len(shots), batch_size):
        batch = shots[start : start + batch_size]
        keep = max(len(s.teacher) for s in batch)
        student = next_token_log_probs(model, [s.ids for s in batch], keep).cpu()
        for shot, row in zip(batch, student, strict=True):
            own = row[keep - len(shot.teacher) :]
            loss.setdefault(shot.kind, []).append(float((shot.teacher.exp() * (shot.teacher - own)).sum(-1).mean()))
            same = bool((own.argmax(-1) == shot.teacher.argmax(-1)).all())
            changed.setdefault(shot.kind, []).append(float(not same))
    return ShotLosses({k: sum(v) / len(v) for k, v in loss.items()}, {k: sum(v) / len(v) for k, v in changed.items()})


def fit_coefficients(
    model: "PreTrainedModel",
    coefficients: Coefficients,
    shots: Sequence[Shot],
    validation: Sequence[Shot],
    *,
    weights: Mapping[str, float],
    slack: float = 0.0,
    jitter: float = 0.0,
    steps: int,
    batch_size: int,
    learning_rate: float,
    measure_every: int,
    patience: int,
    seed: int,
    on_measure: Callable[[int, ShotLosses], None] | None = None,
) -> Fitted:
    """Fit coefficients by Adam from where they stand, and keep the best seen on the validation shots.

    The objective is ``sum over kinds of weight * mean KL``. Nothing is clamped: good values may be large or negative.

    Args:
        model: the target, in evaluation mode; its weights are never changed.
        coefficients: what is fitted; afterwards at the best values.
        shots: to train on, of every kind with a weight above 0.
        validation: shots that choose among the values met on the way.
        weights: kind -> weight of its term.
        slack: divergence (nats per token) up to which a safety shot costs nothing; see `objective`.
        jitter: how much smaller and larger than it is the change may look to a shot; see `sizes`.
        steps: optimiser steps.
        batch_size: shots per step, spread over the kinds in proportion to their number.
        learning_rate: Adam's at its peak; it falls to 0 by half a cosine.
        measure_every: steps between measurements on the validation shots.
        patience: measurements in a row without an objective 1% lower than before, after which the fit ends.
        seed: of the draws.
        on_measure: called with (steps done, measure) at every measurement.

    Raises:
        EmptySample: a kind with a weight has no shots.
    """
    kinds, random = group_by_kind(shots, weights), torch.Generator().manual_seed(seed)
    optimiser, seen = torch.optim.Adam(coefficients.values, lr=learning_rate, betas=MOMENTS), list[_Point]()

    def note(step: int) -> None:
        with torch.no_grad(), coefficients.added(model):
            found = measure_shots(model, validation)
        seen.append((found.weighted_objective(weights), -step, [one.detach().clone() for one in coefficients.values]))
        if on_measure is not None:
            on_measure(step, found)

    note(0)
    for step in range(1, steps + 1):
        batch = draw_batch(kinds, batch_size, random)
        with coefficients.added(model, jitter_scales(batch, jitter, random)):
            loss = objective(model, batch, weights, slack)
        _descend(optimiser, loss, learning_rate * 0.5 * (1.0 + math.cos(math.pi * (step - 1) / steps)))
        if step % measure_every == 0 or step == steps:
            note(step)
            if stalled([one[0] for one in seen], patience):
                break
    steps = _restore(seen, coefficients)
    return _fitted(coefficients, seen, steps, smallest_safe_scale(model, coefficients, validation, 1.25 * slack))


def _descend(optimiser: torch.optim.Optimizer, loss: Tensor, learning_rate: float) -> None:
    optimiser.param_groups[0]["lr"] = learning_rate
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()


MOMENTS = (0.8, 0.95)  # short: a fit has too few steps for Adam's usual memory
_Point = tuple[float, int, list[Tensor]]  # objective, -step, values


def _restore(seen: Sequence[_Point], coefficients: Coefficients) -> int:
    """Put back the values of the least objective, the latest of equals; NaN never wins over a number."""
    _, back, best = min(seen, key=lambda one: (math.isnan(one[0]), *one[:2]))
    with torch.no_grad():
        for value, kept in zip(coefficients.values, best, strict=True):
            value.copy_(kept)
    return -back


SIZES = (1.0, 0.95, 0.9, 0.85, 0.8)
MARGIN = 0.9


@torch.no_grad()
def smallest_safe_scale(
    model: "PreTrainedModel", coefficients: Coefficients, validation: Sequence[Shot], limit: float
) -> float:
    """Shrink the change to the least of `SIZES` at which safety still holds with a margin, and say which.

    Safety holds at a size while the mean KL (nats per token) of the safety shots is at most ``limit`` with `MARGIN`
    times that size: new prompts are harder than the shots. Of two changes that hold it, the smaller one disturbs less
    of what is benign.
    """
    safety, whole = [shot for shot in validation if shot.kind == "safety"], [one.clone() for one in coefficients.values]

    def resized(size: float) -> None:
        for value, one in zip(coefficients.values, whole, strict=True):
            value.copy_(one)
        coefficients.resize(size)

    def holds(size: float) -> bool:
        resized(MARGIN * size)
        with coefficients.added(model):
            return measure_shots(model, safety).loss["safety"] <= limit

    first, last = 0, len(SIZES) - 1 if safety and limit else 0
    while first < last:
        middle = (first + last + 1) // 2
        first, last = (middle, last) if holds(SIZES[middle]) else (first, middle - 1)
    resized(SIZES[first])
    return SIZES[first]


def _fitted(coefficients: Coefficients, seen: Sequence[_Point], steps: int, size: float) -> Fitted:
    return Fitted(
        patch=coefficients.patch(),
        coefficients=coefficients.plain(),
        sizes=coefficients.sizes(),
        alphas=coefficients.alphas(),
        trained=sum(one.numel() for one in coefficients.values),
        steps=steps,
        history=tuple((-step, value) for value, step, _ in seen),
        size=size,
    )


def stalled(values: Sequence[float], patience: int) -> bool:
    """Whether none of the last ``patience`` objectives is 1% below the least one before them."""
    return len(values) > patience and not min(values[-patience:]) < 0.99 * min(values[:-patience])


def group_by_kind(shots: Sequence[Shot], weights: Mapping[str, float]) -> dict[ShotKind, list[Shot]]:
    """The shots of every kind with a weight.

    Raises:
        EmptySample: such a kind has none.
    """
    found = {kind: [s for s in shots if s.kind == kind] for kind in SHOT_KINDS if weights.get(kind, 0.0)}
    for kind, some in found.items():
        if not some:
            raise EmptySample(f"expected {kind} shots, since their weight is {weights[kind]}, got none")
    return found


def draw_batch(kinds: Mapping[ShotKind, Sequence[Shot]], batch_size: int, random: torch.Generator) -> list[Shot]:
    """About ``batch_size`` shots without repetition, of every kind at least one, in proportion to their number."""
    total, batch = sum(map(len, kinds.values())), list[Shot]()
    for some in kinds.values():
        count = max(1, min(len(some), round(batch_size * len(some) / total)))
        batch += [some[i] for i in torch.randperm(len(some), generator=random)[:count].tolist()]
    return batch


def jitter_scales(batch: Sequence[Shot], jitter: float, random: torch.Generator) -> Tensor | None:
    """(batch,) the change's size as each shot meets it: U(1 - jitter, 1) for safety, U(1 - jitter, 1 + jitter) else.

    So safety must hold with less of the change and what is benign with more: a margin on both sides, which new prompts
    need. None without jitter.
    """
    if not jitter:
        return None
    most = torch.tensor([1.0 if shot.kind == "safety" else 1.0 + jitter for shot in batch])
    return most - (most - 1.0 + jitter) * torch.rand(len(batch), generator=random)


def objective(
    model: "PreTrainedModel", batch: Sequence[Shot], weights: Mapping[str, float], slack: float = 0.0
) -> Tensor:
    """() weighted sum over kinds of the mean over shots of the mean KL per token: what `measure` measures.

    With a ``slack`` (nats per token) a safety shot within it costs nothing, ``max(0, KL - slack)``: safety is then a
    constraint to be met, and what is benign is not traded for more of it.
    """
    with bf16_autocast(model):
        kl, mask = divergence(model, batch)
    safety = torch.tensor([shot.kind == "safety" for shot in batch], device=kl.device)
    per_shot = kl.sum(1) / mask.sum(1)
    per_shot = torch.where(safety, (per_shot - slack).relu(), per_shot)
    kinds = {shot.kind for shot in batch}
    return torch.stack(
        [weights[k] * per_shot[torch.tensor([s.kind == k for s in batch])].mean() for k in sorted(kinds)]
    ).sum()
