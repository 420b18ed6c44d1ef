"""EnchTable: a safety vector scaled to the fine-tune's change, and less where the two interfere.

Wu et al. 2025 (arXiv 2511.09880). ``W = W_t + w_l s S_l`` with ``s = beta |T| / |S|`` (norms over all matrices, beta
0.1), T the fine-tune's changes, S = W_safe - W_harmful, and ``w_l = exp(-sharpness i_l)``. The interference i_l is
that of task singular vectors (Gargiulo et al. 2025, arXiv 2412.00081): with U, s, V the leading half of the singular
triples of T_l and of the scaled S_l, side by side, the mean absolute entry of ``(U^T U - I) diag(s) (V^T V - I)``.

The paper distils S on a surrogate, linearised; here S is the safety vector W_a - W_degraded that every method gets. The
sharpness, 200, is the public code's: i_l has the unit of a weight, so it is worth choosing again at another size. Ours
differs from that code in taking half of the directions that a change really has: completing a low-rank change by
arbitrary null directions makes i_l depend on the SVD's implementation. It also loads one matrix at a time, not four
models.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from safegene.errors import EmptySample
from safegene.repair.baselines.base import Candidate, Case, Method, best_of
from safegene.vectors.linalg import LowRank, energy, product_svd
from safegene.workspace.baseline_params import BaselineParams, Factor

Triples = tuple[Tensor, Tensor, Tensor]


class EnchTableParams(BaselineParams):
    """``beta``: norm of the safety change over that of the target's; ``sharpness``: how fast interference lowers it."""

    method: Literal["enchtable"] = "enchtable"
    beta: Factor | None = 0.1
    betas: tuple[Factor, ...] = Field(default=(0.05, 0.1, 0.2, 0.5, 1.0), min_length=1)
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5  # of each change's singular directions that are compared
    sharpness: Factor = 200.0


def repair(params: EnchTableParams, case: Case) -> Candidate:
    """Add the scaled and weighted safety vector; it stays low-rank.

    Raises:
        EmptySample: the safety vector is zero in every matrix.
    """
    if params.beta is None:
        return best_of(case, params.betas, lambda beta: _add(params, case, beta))
    return _add(params, case, params.beta)


def _add(params: EnchTableParams, case: Case, beta: float) -> Candidate:
    safety = {name: case.change(name) for name in case.names}
    size = math.sqrt(sum(one.energy() for one in safety.values()))
    if not size:
        raise EmptySample(f"expected a safety vector that is not zero, got zeros in all {len(safety)} matrices")
    scale = beta * math.sqrt(sum(energy(case.delta(name)) for name in case.names)) / size
    weights = {name: weight(case.delta(name), one.scaled(scale), params) for name, one in safety.items()}
    patch = {name: one.scaled(scale * weights[name]) for name, one in safety.items()}
    return Candidate(patch, 0, {"beta": beta, "scale": scale, "weights": weights})


def weight(delta: Tensor, safety: LowRank, params: EnchTableParams) -> float:
    """``exp(-sharpness i)``, 0..1; 1 where the two changes (out, in) share no direction."""
    left, values, right = torch.linalg.svd(delta.double(), full_matrices=False)
    task, safe = _leading((left, values, right), params.share), _leading(product_svd(safety), params.share)
    return math.exp(-params.sharpness * interference(task, safe))


def interference(task: Triples, safe: Triples) -> float:
    """Mean absolute entry of ``(U^T U - I) diag(s) (V^T V - I)``, (k, k), for two sets of singular triples together."""
    left, values = torch.cat([task[0], safe[0]], dim=1), torch.cat([task[1], safe[1]])
    right = torch.cat([task[2], safe[2]])
    if not len(values):
        return 0.0
    one = torch.eye(len(values), dtype=left.dtype)
    return float(((left.T @ left - one) @ torch.diag(values) @ (right @ right.T - one)).abs().mean())


def _leading(triples: Triples, share: float) -> Triples:
    """The leading share of the triples above fp32 rounding, at least one if there is any."""
    left, values, right = triples
    floor = torch.finfo(torch.float32).eps * max(left.shape[0], right.shape[1]) * float(values.max())
    real = int((values > floor).sum())
    kept = min(real, max(1, int(real * share)))
    return left[:, :kept], values[:kept], right[:kept]


METHOD = Method(EnchTableParams, repair, "https://arxiv.org/abs/2511.09880")
