"""Second moments of what goes into linear layers, on shots: what Safe Delta and SaLoRA need to know of safety data."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from safegene.errors import EmptySample
from safegene.models.forward import next_token_log_probs
from safegene.models.patching import linear_layer
from safegene.repair.shots import Shot

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AT_ONCE = 64  # matrices whose moments are held together: in^2 numbers of 4 bytes each


@torch.no_grad()
def moments(
    model: "PreTrainedModel", names: Sequence[str], shots: Sequence[Shot], *, at_once: int = AT_ONCE
) -> Iterator[tuple[str, Tensor]]:
    """(name, H) with ``H = X X^T / n`` (in, in), float32 on the CPU, X (in, n) the inputs at all n tokens of the shots.

    Shots run one by one, so nothing is padded; once for every ``at_once`` matrices, so memory stays bounded.

    Raises:
        EmptySample: there are no shots.
        TensorMissing: the model lacks a layer.
        ShapeMismatch: a name is not a linear layer's weight.
    """
    if not shots:
        raise EmptySample("expected shots to take activations on, got none")
    tokens = sum(len(shot.ids) for shot in shots)
    for start in range(0, len(names), at_once):
        sums = dict[str, Tensor]()
        handles = []
        try:
            for name in names[start : start + at_once]:
                handles.append(linear_layer(model, name).register_forward_hook(_gather(sums, name)))
            for shot in shots:
                next_token_log_probs(model, [shot.ids], 1)
        finally:
            for handle in handles:
                handle.remove()
        for name in names[start : start + at_once]:
            yield name, sums.pop(name).cpu() / tokens


def _gather(sums: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        rows = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
        sums[name] = sums[name].addmm_(rows.T, rows) if name in sums else rows.T @ rows

    return hook
