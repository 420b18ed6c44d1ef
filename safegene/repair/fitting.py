"""Fits the coefficients of one target. They multiply the vector's fixed low-rank factors; nothing else is trained.

The change beside the target's weights is that of `repair.coefficients`. The loss is a KL divergence to a teacher
(SafeGene, arXiv 2606.06519). Safety shots: the teacher is the aligned model, on the first tokens of its own reply.
Benign and task shots: the teacher is the unrepaired target, on the first tokens of its own reply. Only the coefficients
have a gradient, so a step costs a forward pass and a backward pass through activations only.

Laws (tests state them): the model's weights are never changed; the same shots and settings give the same coefficients
on the same machine. The result: the best values measured on the validation shots, the start included, then scaled down
as far as safety allows (`smallest_safe_scale`).
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safegene.errors import EmptySample
from safegene.repair.coefficients import Coefficients
from safegene.repair.divergence import ShotLosses, batch_objective, measure_shots, parts_of, term_weights
from safegene.repair.shots import SHOT_KINDS, Shot, ShotKind
from safegene.repair.training import Trajectory, checkpointing, optimise
from safegene.vectors.linalg import LowRank
from safegene.workspace.params import CalibrateParams
from safegene.workspace.progress import log_progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
ADAM_BETAS = (0.8, 0.95)  # less averaging than Adam's default, since a fit has few steps
SAFE_SCALES = (1.0, 0.95, 0.9, 0.85, 0.8)  # of the fitted change; the smallest that is safe is kept
SAFETY_MARGIN = 0.9  # safety is tested at this part of each scale
SLACK_AFTER_FIT = 1.25  # the safety KL allowed when scaling down, as a multiple of calibrate.safety_slack


@dataclass(frozen=True)
class Fitted:
    """The outcome of a fit, or a baseline's repair in the same form.

    Attributes:
        patch: matrix name -> change, the coefficients folded in.
        coefficients: the numbers fitted, as JSON, by matrix name.
        direction_sizes: matrix name -> how much of each direction of the vector is in the change.
        alphas: matrix name -> how much of the vector itself.
        trained: how many numbers were fitted.
        steps: optimiser steps behind them.
        history: (steps done, objective on the validation shots) of every measurement, the start first.
        scale: the part of the fitted change that is kept; see `smallest_safe_scale`.
    """

    patch: Mapping[str, LowRank]
    coefficients: Mapping[str, Any]
    direction_sizes: Mapping[str, Sequence[float]]
    alphas: Mapping[str, float]
    trained: int
    steps: int
    history: tuple[tuple[int, float], ...]
    scale: float = 1.0


def fit_coefficients(
    params: CalibrateParams,
    model: "PreTrainedModel",
    coefficients: Coefficients,
    shots: Sequence[Shot],
    validation: Sequence[Shot],
    *,
    further: Sequence[Shot] = (),
    on_measure: Callable[[int, ShotLosses], None] | None = None,
    cost: Callable[[int, ShotLosses], float] | None = None,
    shrink: bool = True,
) -> Fitted:
    """Fit coefficients by Adam from where they stand.

    The objective is ``sum over kinds of weight x mean KL``. Nothing is clamped: good values may be large or negative.

    Args:
        params: the weights of the kinds, ``safety_slack`` (see `batch_objective`), ``jitter`` (see `jitter_scales`),
            ``steps``, ``batch_size``, ``learning_rate`` (it falls to 0 by half a cosine), ``measure_every``,
            ``patience`` (measurements in a row without an objective 1% lower than before) and ``seed`` are used.
        model: the target, in evaluation mode; its weights are never changed.
        coefficients: what is fitted; afterwards at the values that are returned.
        shots: to train on, of every kind with a weight above 0.
        validation: shots that choose among the values measured.
        further: shots that are drawn like ``shots``, but leave each kind's part of a batch as ``shots`` has it.
        on_measure: called with (steps done, losses) at every measurement.
        cost: (steps done, losses) -> what the best values have least of; by default the weighted objective.
        shrink: whether to scale the best values down at the end, see `smallest_safe_scale`.

    Raises:
        EmptySample: a kind with a weight has no shots.
    """
    weights = term_weights(params)
    own, random = group_by_kind(shots, weights), torch.Generator().manual_seed(params.seed)
    kinds = {kind: [*some, *(shot for shot in further if shot.kind == kind)] for kind, some in own.items()}
    sizes = batch_sizes(own, params.batch_size)
    trajectory = Trajectory(lambda: [tensor.detach().clone() for tensor in coefficients.parameters])

    def measure(step: int) -> None:
        with torch.no_grad(), coefficients.hooked(model):
            losses = measure_shots(model, validation)
        trajectory.record(step, losses.weighted_objective(weights) if cost is None else cost(step, losses))
        if on_measure is not None:
            on_measure(step, losses)

    def step_losses(step: int) -> Iterator[Tensor]:
        log_progress(log, "fit, steps", step - 1, params.steps)
        batch = draw_batch(kinds, sizes, random)
        scales, counts = jitter_scales(batch, params.jitter, random), Counter[str](shot.kind for shot in batch)
        parts, checkpointed = parts_of(model, batch)
        with checkpointing(model, on=checkpointed):
            for part in parts:
                with coefficients.hooked(model, None if scales is None else scales[part]):
                    yield batch_objective(model, batch[part], weights, params.safety_slack, counts)

    def after_step(step: int, _: Tensor) -> bool:
        if step % params.measure_every and step != params.steps:
            return False
        measure(step)
        return trajectory.stalled(params.patience)

    measure(0)
    optimise(
        torch.optim.Adam(coefficients.parameters, lr=params.learning_rate, betas=ADAM_BETAS),
        step_losses,
        steps=params.steps,
        learning_rate=lambda step: params.learning_rate * 0.5 * (1.0 + math.cos(math.pi * (step - 1) / params.steps)),
        after_step=after_step,
    )
    assign(coefficients, trajectory.best)
    slack = SLACK_AFTER_FIT * params.safety_slack
    scale = smallest_safe_scale(model, coefficients, validation, slack) if shrink else 1.0
    return fitted_from(coefficients, trajectory.best_step, trajectory.history, scale)


def fitted_from(
    coefficients: Coefficients, steps: int, history: Sequence[tuple[int, float]], scale: float = 1.0
) -> Fitted:
    """The outcome of a fit whose coefficients stand at their final values."""
    return Fitted(
        patch=coefficients.patch(),
        coefficients=coefficients.to_json(),
        direction_sizes=coefficients.direction_sizes(),
        alphas=coefficients.alphas(),
        trained=sum(tensor.numel() for tensor in coefficients.parameters),
        steps=steps,
        history=tuple((step, objective) for step, objective in history),
        scale=scale,
    )


@torch.no_grad()
def assign(coefficients: Coefficients, values: Sequence[Tensor]) -> None:
    """Set the numbers to these values."""
    for tensor, value in zip(coefficients.parameters, values, strict=True):
        tensor.copy_(value)


@torch.no_grad()
def smallest_safe_scale(
    model: "PreTrainedModel", coefficients: Coefficients, validation: Sequence[Shot], limit: float
) -> float:
    """Scale the change down to the smallest of `SAFE_SCALES` at which safety holds with a margin, and return it.

    Safety holds at a scale if the mean KL of the safety shots is at most ``limit`` with `SAFETY_MARGIN` times that
    scale: new prompts are harder than the shots. Of two changes that hold it, the smaller one disturbs benign behaviour
    less. If there are no safety shots, or ``limit`` is 0, or no smaller scale is safe, the change stays as it is. The
    scales are searched by bisection.

    Args:
        model: the target; its weights are never changed.
        coefficients: what was fitted; afterwards scaled.
        validation: shots of any kind.
        limit: nats per token.
    """
    safety = [shot for shot in validation if shot.kind == "safety"]
    fitted = [tensor.clone() for tensor in coefficients.parameters]

    def set_scale(scale: float) -> None:
        assign(coefficients, fitted)
        coefficients.scale(scale)

    def is_safe(scale: float) -> bool:
        set_scale(SAFETY_MARGIN * scale)
        with coefficients.hooked(model):
            return measure_shots(model, safety).loss["safety"] <= limit

    first, last = 0, len(SAFE_SCALES) - 1 if safety and limit else 0
    while first < last:
        middle = (first + last + 1) // 2
        first, last = (middle, last) if is_safe(SAFE_SCALES[middle]) else (first, middle - 1)
    set_scale(SAFE_SCALES[first])
    return SAFE_SCALES[first]


def group_by_kind(shots: Sequence[Shot], weights: Mapping[str, float]) -> dict[ShotKind, list[Shot]]:
    """The shots of every kind with a weight.

    Raises:
        EmptySample: such a kind has none.
    """
    groups = {kind: [shot for shot in shots if shot.kind == kind] for kind in SHOT_KINDS if weights.get(kind, 0.0)}
    for kind, group in groups.items():
        if not group:
            raise EmptySample(f"expected {kind} shots, since their weight is {weights[kind]}, got none")
    return groups


def batch_sizes(kinds: Mapping[ShotKind, Sequence[Shot]], batch_size: int) -> dict[ShotKind, int]:
    """How many shots of each kind a batch of about ``batch_size`` has: in proportion to their number, at least one."""
    total = sum(map(len, kinds.values()))
    return {kind: max(1, min(len(shots), round(batch_size * len(shots) / total))) for kind, shots in kinds.items()}


def draw_batch(
    kinds: Mapping[ShotKind, Sequence[Shot]], sizes: Mapping[ShotKind, int], random: torch.Generator
) -> list[Shot]:
    """As many shots of each kind as ``sizes`` says, none drawn twice."""
    return [
        shots[at]
        for kind, shots in kinds.items()
        for at in torch.randperm(len(shots), generator=random)[: sizes[kind]].tolist()
    ]


def jitter_scales(batch: Sequence[Shot], jitter: float, random: torch.Generator) -> Tensor | None:
    """(batch,) scale of the change for each shot: U(1 - jitter, 1) for safety shots, U(1 - jitter, 1 + jitter) else.

    So safety must hold with less of the change, and benign behaviour with more: a margin on both sides, which new
    prompts need. None without jitter, and nothing is drawn.
    """
    if not jitter:
        return None
    highest = torch.tensor([1.0 if shot.kind == "safety" else 1.0 + jitter for shot in batch])
    return highest - (highest - 1.0 + jitter) * torch.rand(len(batch), generator=random)
