"""Safe Delta: keep the entries of a fine-tune's change that cost little safety, and compensate for what they cost.

Lu et al. 2025, "Safe Delta" (ICML, arXiv 2505.12038). The safety loss of a change D (out, in) is the output it moves on
safety inputs, ``1/2 tr(D H D^T)`` with H (in, in) from the *aligned* model. An entry's cost, when the others may
adapt (Optimal Brain Surgeon), is ``d^2 / (2 [H^-1]_mm)``. Entries are taken in the order of ``2 [H^-1]_mm``, utility
per cost, as long as their costs add up to at most a budget (0.1). W is ``W_a + M * D + C``, with M the kept entries
and C the compensation, on the others.

Ours differs from the public code, where read: the budget is by default a share of the whole change's cost, since the
code's (``absolute``: 0.1 (out / 4096) mean(1 / [H^-1]_mm), tuned to Llama-2's small changes) keeps almost nothing of a
larger change and depends on its block size; no 15% of the entries is left out beforehand; [H^-1]_mm is H^-1's diagonal,
not that of its Cholesky factor; and C is the exact minimiser of the safety loss given what is kept, where one pass from
left to right (SparseGPT) is not sure to lower it. The order ties within a column, so entries go column by column and
the minimiser needs two solves for all rows.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from safegene.repair.baselines.activations import moments
from safegene.repair.baselines.base import Candidate, Case, Method, best_of, exact
from safegene.repair.shots import Shot, evenly_spaced
from safegene.vectors.linalg import LowRank
from safegene.workspace.baseline_params import BaselineParams, Factor
from safegene.workspace.fields import Positive, PositiveFloat

REFERENCE = 4096  # rows of the matrices for which the paper's budget was tuned


class SafeDeltaParams(BaselineParams):
    """How much safety loss the kept entries may cost, as a share of the whole change's, or on the public code's scale.

    ``damping`` is added to the Hessian's diagonal, as a share of its mean.
    """

    method: Literal["safedelta"] = "safedelta"
    budget: Factor | None = 0.1
    budgets: tuple[Factor, ...] = Field(default=(0.03, 0.1, 0.3), min_length=1)
    scale: Literal["total", "absolute"] = "total"
    shots: Positive = 128
    damping: PositiveFloat = 0.01
    compensate: bool = True


def repair(params: SafeDeltaParams, case: Case) -> Candidate:
    """Replace each matrix's change by its affordable part and the compensation.

    Raises:
        EmptySample: there are no safety shots.
    """
    shots = evenly_spaced(case.taught("fit", "safety"), params.shots)
    if params.budget is None:
        return best_of(case, params.budgets, lambda budget: _select(params, case, shots, budget))
    return _select(params, case, shots, params.budget)


def _select(params: SafeDeltaParams, case: Case, shots: Sequence[Shot], budget: float) -> Candidate:
    patch, share = dict[str, LowRank](), dict[str, float]()
    for name, raw in moments(case.anchor(), case.names, shots):
        delta, hessian = case.delta(name).double(), damped(raw.double(), params.damping)
        room = torch.cholesky_inverse(torch.linalg.cholesky(hessian)).diagonal()
        kept = affordable(delta, room, allowance(delta, room, budget, params.scale))
        wanted = compensated(delta, kept, hessian) if params.compensate else delta * kept
        patch[name] = exact(wanted - delta)
        share[name] = float(kept.double().mean())
    return Candidate(patch, 0, {"budget": budget, "scale": params.scale, "shots": len(shots), "kept": share})


def damped(moment: Tensor, damping: float) -> Tensor:
    """H (in, in) with ``damping`` x its mean diagonal added, so that it has an inverse; the identity if H is zero."""
    mean = float(moment.diagonal().mean()) or 1.0 / damping
    return moment + damping * mean * torch.eye(len(moment), dtype=moment.dtype)


def costs(delta: Tensor, room: Tensor) -> Tensor:
    """(out, in): ``d^2 / (2 [H^-1]_mm)``, the safety loss of setting one entry; ``room`` (in,) is H^-1's diagonal."""
    return delta.square() / (2.0 * room)


def allowance(delta: Tensor, room: Tensor, budget: float, scale: str) -> float:
    """The cost that the kept entries may add up to: a share of everything's, or on the public code's scale."""
    if scale == "absolute":
        return budget * len(delta) / REFERENCE * float((0.5 / room).mean())
    return math.inf if math.isinf(budget) else budget * float(_in_order(costs(delta, room), room)[-1])


def affordable(delta: Tensor, room: Tensor, budget: float) -> Tensor:
    """(out, in) bool: the entries whose costs, added up column by column from the roomiest, stay within the budget."""
    kept = (_in_order(costs(delta, room), room) <= budget).reshape(delta.shape[1], delta.shape[0])
    mask = torch.empty_like(kept)
    mask[_order(room)] = kept
    return mask.T


def compensated(delta: Tensor, kept: Tensor, hessian: Tensor) -> Tensor:
    """(out, in): the change that equals delta where kept and elsewhere is what least moves safety outputs.

    For a row with kept entries K and others U: ``c_U = -H_UU^-1 H_UK d_K``, the minimiser of ``d H d^T`` given d_K.
    """
    wanted = delta * kept
    patterns, members = torch.unique(kept, dim=0, return_inverse=True)
    for at, pattern in enumerate(patterns):
        if pattern.any() and not pattern.all():
            rows = (members == at).nonzero()[:, 0]
            pull = hessian[~pattern][:, pattern] @ delta[rows][:, pattern].T
            free = torch.cholesky_solve(pull, torch.linalg.cholesky(hessian[~pattern][:, ~pattern]))
            wanted[rows[:, None], (~pattern).nonzero()[:, 0]] = -free.T
    return wanted


def _order(room: Tensor) -> Tensor:
    return torch.sort(room, descending=True, stable=True).indices


def _in_order(cost: Tensor, room: Tensor) -> Tensor:
    """(in * out,) costs added up, column after column from the roomiest, each from its first row to its last."""
    return cost.T[_order(room)].flatten().cumsum(0)


METHOD = Method(SafeDeltaParams, repair, "https://arxiv.org/abs/2505.12038")
