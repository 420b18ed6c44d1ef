"""RESTA: ``W_t + gamma (W_a - W_d)``, one gamma for every matrix.

Bhardwaj, Do, Poria 2024, "Language Models are Homer Simpson!" (arXiv 2402.11746); DARE from Yu et al. 2023
(arXiv 2311.03099): drop entries at random with rate p, multiply the rest by 1 / (1 - p).

Defaults: gamma 1, no dropping. The paper drops from the fine-tune's own change (``drop_from: task``); dropping from the
safety vector is offered too. Ours adds the fp32 difference of fp32 factors, where a difference of bf16 checkpoints is
mostly rounding noise; the draw has a seed; and nothing is multiplied by zero, as in one RESTA shipped as a baseline.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from safegene.repair.baselines.base import Candidate, Case, Method, best_of, compose, exact
from safegene.vectors.linalg import LowRank
from safegene.workspace.baseline_params import BaselineParams, Factor


class RestaParams(BaselineParams):
    """``W_t + gamma S``; ``drop`` is DARE's rate, on the safety vector or on the target's own change."""

    method: Literal["resta"] = "resta"
    gamma: Factor | None = 1.0
    gammas: tuple[Factor, ...] = Field(default=(0.5, 1.0, 1.5, 2.0, 3.0), min_length=1)
    drop: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    drop_from: Literal["safety", "task"] = "safety"


def repair(params: RestaParams, case: Case) -> Candidate:
    """Add the safety vector; its factors stay low-rank where nothing is dropped."""
    if params.gamma is None:
        return best_of(case, params.gammas, lambda gamma: _add(params, case, gamma))
    return _add(params, case, params.gamma)


def dare(delta: Tensor, drop: float, random: torch.Generator) -> Tensor:
    """(out, in): entries zeroed with probability ``drop`` and the others divided by 1 - drop; the expectation stays."""
    kept = torch.rand(delta.shape, generator=random) >= drop
    return delta * kept.to(delta.device) / (1.0 - drop)


def _add(params: RestaParams, case: Case, gamma: float) -> Candidate:
    random = torch.Generator().manual_seed(case.seed)
    patch = {name: _change(params, case, name, gamma, random) for name in case.names}
    return Candidate(patch, 0, {"gamma": gamma, "drop": params.drop, "drop_from": params.drop_from})


def _change(params: RestaParams, case: Case, name: str, gamma: float, random: torch.Generator) -> LowRank:
    safety = case.change(name).scaled(gamma)
    if not params.drop:
        return safety
    if params.drop_from == "safety":
        return exact(dare(safety.dense(), params.drop, random))
    delta = case.delta(name)
    return compose([safety, exact(dare(delta, params.drop, random) - delta)])


METHOD = Method(RestaParams, repair, "https://arxiv.org/abs/2402.11746")
