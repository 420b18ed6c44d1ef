"""Trainable LoRA factors beside a model's linear layers (Hu et al. 2021, arXiv 2106.09685).

A layer ``y = W x`` becomes ``y = W x + up (down x)`` with up (out, r) and down (r, in); W is frozen.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from safegene.models.patching import forward_hooks, matrix_weight
from safegene.vectors.linalg import LowRank, Patch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Lora:
    """Trainable float32 factors, up (out, r) and down (r, in) by matrix name, alive inside `lora`."""

    def __init__(self, factors: Mapping[str, tuple[nn.Parameter, nn.Parameter]]) -> None:
        self.factors = dict(factors)

    @property
    def parameters(self) -> list[Tensor]:
        """Every up and down, for an optimiser."""
        return [part for pair in self.factors.values() for part in pair]

    def patch(self) -> dict[str, LowRank]:
        """The change ``dW = up @ down`` made so far, by matrix name: copies on the CPU in float32."""
        return {
            name: LowRank(up.detach().float().cpu().clone(), down.detach().float().cpu().clone())
            for name, (up, down) in self.factors.items()
        }


@contextmanager
def lora(
    model: "PreTrainedModel", names: Sequence[str], *, rank: int, seed: int, start: Patch | None = None
) -> Iterator[Lora]:
    """Add trainable factors to linear layers while the block runs; the model's own weights are frozen meanwhile.

    Args:
        model: its forward pass includes the factors inside the block and is as before outside it.
        names: matrices, such as ``model.layers.0.self_attn.q_proj.weight``.
        rank: r, columns of up and rows of down; those of ``start`` where it is given.
        seed: of the down factors; up starts at zero, so the block begins with the unchanged model.
        start: factors to begin with instead, by the same names.

    Raises:
        TensorMissing: the model has no such matrix.
        ShapeMismatch: ``start`` does not fit it.
    """
    random = torch.Generator().manual_seed(seed)
    factors = {
        name: _pair(matrix_weight(model, name), rank, random, None if start is None else start[name]) for name in names
    }
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        shapes = {name: LowRank(*pair) for name, pair in factors.items()}
        with forward_hooks(model, shapes, lambda name, _: factors[name], None):
            yield Lora(factors)
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def _pair(
    weight: Tensor, rank: int, random: torch.Generator, start: LowRank | None
) -> tuple[nn.Parameter, nn.Parameter]:
    device, (out, into) = weight.device, weight.shape
    down = (torch.rand(rank, into, generator=random) * 2 - 1) / math.sqrt(into)
    up = torch.zeros(out, rank)
    if start is not None:
        up, down = start.up.float().clone(), start.down.float().clone()
    return nn.Parameter(up.to(device)), nn.Parameter(down.to(device))
