"""Low-rank changes of a model: added to its weights, or to the outputs of its layers.

A change of a matrix W (out, in) is ``up @ down`` with up (out, r) and down (r, in).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safegene.errors import ShapeMismatch, TensorMissing
from safegene.vectors.linalg import LowRank, Patch


def add_patch(model: torch.nn.Module, patch: Mapping[str, LowRank], *, scale: float = 1.0) -> None:
    """``W <- W + scale * up @ down`` in place, in W's dtype, for each matrix of the patch; ``scale=-1`` undoes it.

    Raises:
        TensorMissing: the model has no such matrix.
        ShapeMismatch: the change has another shape.
    """
    weights = dict(model.named_parameters())
    for name, change in patch.items():
        if name not in weights:
            raise TensorMissing(f"expected the matrix {name} in the model, got none of that name")
        weight = weights[name]
        if tuple(weight.shape) != change.shape:
            raise ShapeMismatch(f"expected a change of shape {tuple(weight.shape)} for {name}, got {change.shape}")
    with torch.no_grad():
        for name, change in patch.items():
            weight = weights[name]
            up, down = change.up.to(weight.device).float(), change.down.to(weight.device).float()
            weight.add_((up @ down).to(weight.dtype), alpha=scale)


@contextmanager
def patched(model: nn.Module, patch: Patch) -> Iterator[None]:
    """``W + up @ down`` in the model's weights inside the block; afterwards the exact weights are restored."""
    weights = dict(model.named_parameters())
    kept = {name: weights[name].detach().clone() for name in patch if name in weights}
    try:
        add_patch(model, patch)
        yield
    finally:
        with torch.no_grad():
            for name, before in kept.items():
                weights[name].copy_(before)


@contextmanager
def low_rank_hooks(
    model: nn.Module, patch: Patch, alphas: Mapping[str, Tensor], sizes: Tensor | None = None
) -> Iterator[None]:
    """Add ``up_l (alpha_l * (down_l x))`` to the outputs of linear layers inside the block; weights are unchanged.

    Args:
        model: has an `nn.Linear` for each name.
        patch: matrix name -> up (out, r), down (r, in).
        alphas: matrix name -> tensor (), (1,) or (r,), which may require a gradient.
        sizes: (batch,), a further factor for each row of the batch.

    Raises:
        TensorMissing: the model lacks a layer.
        ShapeMismatch: a layer is not linear or has another shape than its change.
    """

    def factors(name: str, device: torch.device) -> tuple[Tensor, Tensor]:
        change, alpha = patch[name], alphas[name]
        return (change.up * alpha.to(change.up.device)).to(device), change.down.to(device)

    with forward_hooks(model, patch, factors, sizes):
        yield


@contextmanager
def forward_hooks(
    model: nn.Module,
    shapes: Patch,
    factors: Callable[[str, torch.device], tuple[Tensor, Tensor]],
    sizes: Tensor | None,
) -> Iterator[None]:
    """Add ``up (down x)`` to the output of each layer inside the block.

    Args:
        model: has an `nn.Linear` for each name.
        shapes: matrix name -> a change of the matrix's shape.
        factors: (matrix name, device) -> up (out, k) and down (k, in).
        sizes: (batch,), a further factor for each row of the batch.

    Raises:
        TensorMissing: the model lacks a layer.
        ShapeMismatch: a layer is not linear or has another shape than its change.
    """
    handles = []
    try:
        for name, change in shapes.items():
            layer = linear_layer(model, name, change.shape)
            handles.append(layer.register_forward_hook(_hook(*factors(name, layer.weight.device), sizes)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(up: Tensor, down: Tensor, sizes: Tensor | None) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        inner = F.linear(inputs[0].to(down.dtype), down)
        inner = inner if sizes is None else inner * sizes.to(inner)[:, None, None]
        return output + F.linear(inner, up).to(output.dtype)

    return hook


def linear_layer(model: nn.Module, name: str, shape: tuple[int, int] | None = None) -> nn.Linear:
    """The linear layer whose weight has the given name.

    Args:
        model: where to look.
        name: such as ``model.layers.0.mlp.up_proj.weight``.
        shape: (out, in) that the weight must have; None allows any.

    Raises:
        TensorMissing: there is no such layer.
        ShapeMismatch: the layer is not linear, or has another shape.
    """
    try:
        layer = model.get_submodule(name.removesuffix(".weight"))
    except AttributeError:
        raise TensorMissing(f"expected a layer with the weight {name!r}, got none in {type(model).__name__}") from None
    wanted = f"expected a linear layer of shape {shape or '(out, in)'}"
    if not isinstance(layer, nn.Linear) or not name.endswith(".weight"):
        raise ShapeMismatch(f"{wanted}, got {type(layer).__name__}, for {name!r}")
    if shape is not None and tuple(layer.weight.shape) != shape:
        raise ShapeMismatch(f"{wanted}, got {tuple(layer.weight.shape)}, for {name!r}")
    return layer
