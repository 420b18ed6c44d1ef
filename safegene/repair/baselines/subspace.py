"""The safety subspace of a matrix, as SafeLoRA and SafeMERGE see it, and how much of a fine-tune's change lies in it.

Hsu et al. 2024, "Safe LoRA" (arXiv 2405.16833). V = W_a - W_unaligned (out, in), ``C = V V^T / |V|_F`` (out, out). C is
no projector: its size grows with V's. ``true`` is the orthogonal projector onto V's column space, or onto its leading
left singular directions.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from safegene.repair.baselines.base import Case
from safegene.vectors.linalg import LowRank, energy, product_svd
from safegene.workspace.baseline_params import BaselineParams
from safegene.workspace.fields import Positive

Cosine = Annotated[float, Field(ge=-1.0, le=1.0, allow_inf_nan=False)]
Projector = Literal["paper", "true"]


class SubspaceParams(BaselineParams):
    """The safety subspace: by the paper's C, or by the true projector onto V's leading ``directions`` (all if null)."""

    projector: Projector = "paper"
    directions: Positive | None = None

    @model_validator(mode="after")
    def _directions_of_a_projector(self) -> "SubspaceParams":
        if self.directions is not None and self.projector != "true":
            raise ValueError("expected directions with the projector 'true' only")
        return self


def project(safety: LowRank, delta: Tensor, projector: Projector, directions: int | None = None) -> Tensor:
    """``C delta`` (out, in), float32, for V given by its factors; nothing of shape (out, out) is made."""
    change = delta.double()
    if projector == "true":
        basis = columns(safety, directions)
        return (basis @ (basis.T @ change)).float()
    up, down = safety.up.double(), safety.down.double()
    norm = safety.energy() ** 0.5
    return ((up @ ((down @ down.T) @ (up.T @ change))) / norm).float() if norm else torch.zeros_like(delta)


def columns(safety: LowRank, directions: int | None = None) -> Tensor:
    """Orthonormal (out, k) float64: the left singular vectors of V above fp32 rounding, the leading ones if told."""
    left, values, _ = product_svd(safety)
    floor = torch.finfo(torch.float32).eps * max(safety.shape) * (values[0] if len(values) else 0.0)
    return left[:, values > floor][:, :directions]


def cosine(one: Tensor, other: Tensor) -> float:
    """``<A, B> / (|A| |B|)`` of two (out, in), in float64; 0 where one of them is zero."""
    size = (energy(one) * energy(other)) ** 0.5
    return float((one.double() * other.double()).sum()) / size if size else 0.0


def cosines(case: Case, projector: Projector, directions: int | None) -> tuple[dict[str, float], dict[str, str]]:
    """Matrix -> cosine of ``C delta`` and delta; and those that have none, with the reason."""
    found, skipped = dict[str, float](), dict[str, str]()
    for name in case.names:
        delta, safety = case.delta(name), case.change(name)
        if not delta.any():
            skipped[name] = "the fine-tune did not change it"
        elif not safety.energy():
            skipped[name] = "the safety vector is zero there"
        else:
            found[name] = cosine(project(safety, delta, projector, directions), delta)
    return found, skipped
