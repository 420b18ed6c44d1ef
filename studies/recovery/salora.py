"""SaLoRA: a LoRA fine-tune that cannot move a layer's output along its safety directions.

Li et al. 2025 (ICLR, arXiv 2501.01765). With U (out, k) the leading left singular vectors of a layer's outputs ``W X``
on safety prompts (128 samples, k = 32), the fixed module ``C = I - U U^T`` stands before the factors:
``y = W x + C up down x``.

Ours is projected gradient descent: after every optimiser step ``up <- C up``, so that the change is C up down at every
step without another module; under plain SGD the two are the same, under Adam only the size of steps differs. The
paper's start of the factors from task data is left out. Nothing assumes 32 layers. Use::

    bases = directions(aligned, names, shots)
    with lora(aligned, names, rank=16, seed=0) as factors:
        supervised(..., parameters=factors.parameters, on_step=lambda *_: constrain(factors, bases))
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safegene.errors import TensorMissing
from safegene.repair.baselines.activations import moments
from safegene.repair.lora import Lora
from safegene.repair.shots import Shot

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def directions(
    aligned: "PreTrainedModel", names: Sequence[str], shots: Sequence[Shot], *, count: int = 32
) -> dict[str, Tensor]:
    """Matrix -> U (out, min(count, out)) orthonormal, float32: the leading left singular vectors of W X.

    ``(W X)(W X)^T = n W H W^T`` with H the second moment of the inputs, so no output is stored; a bias is left out.

    Raises:
        EmptySample: there are no shots.
        TensorMissing: the model lacks a layer.
    """
    weights, found = dict(aligned.named_parameters()), dict[str, Tensor]()
    for name, moment in moments(aligned, names, shots):
        weight = weights[name].detach().cpu().double()
        found[name] = torch.linalg.eigh(weight @ moment.double() @ weight.T).eigenvectors.flip(1)[:, :count].float()
    return found


@torch.no_grad()
def constrain(factors: Lora, bases: Mapping[str, Tensor]) -> None:
    """``up <- (I - U U^T) up`` for every matrix, in place: to be called after every optimiser step.

    Raises:
        TensorMissing: a matrix has no directions.
    """
    for name, (up, _) in factors.factors.items():
        up.copy_(_clean(up, _basis(bases, name)))


def _clean(up: Tensor, basis: Tensor) -> Tensor:
    basis = basis.to(up.device, up.dtype)
    return up - basis @ (basis.T @ up)


def _basis(bases: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in bases:
        raise TensorMissing(f"expected safety directions for {name}, got those of {len(bases)} other matrices")
    return bases[name]
