"""Low-rank changes of a model: added to its weights, or computed beside them during forward passes.

A change of a matrix W has the shape and orientation in which the matrix is stored, (rows, columns), and is
``up @ down`` with up (rows, r) and down (r, columns). `safegene.models.structure` says where the model holds the
matrix. The whole weight of a linear layer gets its change at the layer's output. A part of a larger parameter (experts,
fused rows) or a router gets it in the parameter itself, during each forward pass of its decoder layer.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from safegene.checkpoints.checkpoint import layer_of
from safegene.checkpoints.structure import Matrix
from safegene.errors import CheckpointError, ShapeMismatch, TensorMissing
from safegene.models.structure import structure_of
from safegene.vectors.linalg import LowRank, Patch

Factors = Callable[[str, torch.device], tuple[Tensor, Tensor]]
"""(matrix name, device) -> up (rows, k) and down (k, columns)."""


def add_patch(model: nn.Module, patch: Mapping[str, LowRank], *, scale: float = 1.0) -> None:
    """``W <- W + scale * up @ down`` in place, in W's dtype, for each matrix of the patch; ``scale=-1`` undoes it.

    Raises:
        TensorMissing: the model has no such matrix.
        ShapeMismatch: the change has another shape.
    """
    weights = {name: matrix_weight(model, name, change.shape) for name, change in patch.items()}
    with torch.no_grad():
        for name, change in patch.items():
            weight = weights[name]
            up, down = change.up.to(weight.device).float(), change.down.to(weight.device).float()
            weight.add_((up @ down).to(weight.dtype), alpha=scale)


@contextmanager
def patched(model: nn.Module, patch: Patch) -> Iterator[None]:
    """``W + up @ down`` in the model's weights inside the block; afterwards the exact weights are restored."""
    kept = {name: matrix_weight(model, name, change.shape).detach().clone() for name, change in patch.items()}
    try:
        add_patch(model, patch)
        yield
    finally:
        with torch.no_grad():
            for name, before in kept.items():
                matrix_weight(model, name).copy_(before)


@contextmanager
def low_rank_hooks(
    model: nn.Module, patch: Patch, alphas: Mapping[str, Tensor], sizes: Tensor | None = None
) -> Iterator[None]:
    """Compute ``up_l diag(alpha_l) down_l`` beside the weights inside the block; weights are unchanged.

    Args:
        model: the model.
        patch: matrix name -> up (rows, r), down (r, columns).
        alphas: matrix name -> tensor (), (1,) or (r,), which may require a gradient.
        sizes: (batch,), a further factor for each row of the batch.

    Raises:
        TensorMissing: the model has no such matrix.
        ShapeMismatch: it has another shape than its change.
    """

    def factors(name: str, device: torch.device) -> tuple[Tensor, Tensor]:
        change, alpha = patch[name], alphas[name]
        return (change.up * alpha.to(change.up.device)).to(device), change.down.to(device)

    with forward_hooks(model, patch, factors, sizes):
        yield


@contextmanager
def forward_hooks(model: nn.Module, shapes: Patch, factors: Factors, sizes: Tensor | None) -> Iterator[None]:
    """Compute ``up @ down`` beside the weights inside the block.

    Args:
        model: the model.
        shapes: matrix name -> a change of the matrix's shape.
        factors: see `Factors`.
        sizes: (batch,), a further factor for each row of the batch. A change in a parameter that all rows share is
            multiplied by their mean.

    Raises:
        TensorMissing: the model has no such matrix.
        ShapeMismatch: it has another shape than its change.
        CheckpointError: a parameter that would be changed is offloaded.
    """
    within: dict[str, list[str]] = defaultdict(list)
    layers = _layers_by_weight(model)
    handles: list[RemovableHandle] = []
    try:
        for name, change in shapes.items():
            matrix = matrix_of(model, name, change.shape)
            if matrix.apply == "parameter":
                within[matrix.parameter].append(name)
                continue
            weight = model.get_parameter(matrix.parameter)
            device = _device_of(model.get_submodule(matrix.parameter.removesuffix(".weight")), weight)
            hook = _output_hook(*factors(name, device), sizes, turned=matrix.apply == "transposed")
            handles += [layer.register_forward_hook(hook) for layer in layers[id(weight)]]
        for parameter, names in within.items():
            handles += _parameter_hooks(model, parameter, names, factors, sizes)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layers_by_weight(model: nn.Module) -> dict[int, list[nn.Module]]:
    """Identity of a weight -> the layers that have it: more than one where blocks share their weights."""
    layers: dict[int, list[nn.Module]] = defaultdict(list)
    for layer in model.modules():
        if isinstance(weight := getattr(layer, "weight", None), Tensor):
            layers[id(weight)].append(layer)
    return layers


def matrix_of(model: nn.Module, name: str, shape: tuple[int, int] | None = None) -> Matrix:
    """Where the model holds a matrix.

    Raises:
        TensorMissing: it has none of that name.
        ShapeMismatch: the matrix has another shape than ``shape``.
    """
    matrix = structure_of(model).matrices.get(name)
    if matrix is None:
        raise TensorMissing(f"expected a matrix {name!r}, got none of that name in {type(model).__name__}")
    if shape is not None and matrix.shape != tuple(shape):
        raise ShapeMismatch(f"expected a change of shape {matrix.shape} for {name}, got {tuple(shape)}")
    return matrix


def matrix_weight(model: nn.Module, name: str, shape: tuple[int, int] | None = None) -> Tensor:
    """(rows, columns): the matrix as a view into the model's parameter.

    Raises:
        TensorMissing: see `matrix_of`.
        ShapeMismatch: see `matrix_of`; or the parameter is quantised.
    """
    matrix = matrix_of(model, name, shape)
    parameter: Tensor = model.get_parameter(matrix.parameter)
    if not parameter.is_floating_point():
        raise ShapeMismatch(f"expected {name} as numbers that can be read, got it quantised to {parameter.dtype}")
    held = parameter.detach() if matrix.expert is None else parameter.detach()[matrix.expert]
    size = matrix.shape[::-1] if matrix.turned else matrix.shape
    (row, column), (rows, columns) = matrix.offset, size
    part = held[row : row + rows, column : column + columns]
    return part.T if matrix.turned else part


def linear_layer(model: nn.Module, name: str) -> nn.Linear:
    """The linear layer whose whole weight is the matrix.

    Raises:
        TensorMissing: the model has no such matrix.
        ShapeMismatch: the matrix is not the whole weight of an `nn.Linear`.
    """
    matrix = matrix_of(model, name)
    layer = model.get_submodule(matrix.parameter.rpartition(".")[0])
    if matrix.apply != "linear" or not isinstance(layer, nn.Linear):
        raise ShapeMismatch(f"expected the weight of a linear layer, got {type(layer).__name__}, for {name!r}")
    return layer


def _output_hook(up: Tensor, down: Tensor, sizes: Tensor | None, *, turned: bool) -> Callable[..., Tensor]:
    """Adds ``x W'^T`` for W' = up @ down (out, in); with ``turned``, ``x W'`` for W' (in, out)."""
    into, out = (up.T, down.T) if turned else (down, up)

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        inner = F.linear(inputs[0].to(into.dtype), into)
        inner = inner if sizes is None else inner * _per_row(sizes, inner)
        return output + F.linear(inner, out).to(output.dtype)

    return hook


def _device_of(layer: nn.Module, parameter: Tensor) -> torch.device:
    """Where a layer computes: the device of its weight, or, where that is offloaded, the one it is brought to."""
    hook: Any = getattr(layer, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return parameter.device if device is None else torch.device(device)


def _per_row(sizes: Tensor, inner: Tensor) -> Tensor:
    """``sizes`` (batch,) as a factor for ``inner``: its first dimension is the batch, or batch x tokens flattened.

    Their mean where a layer gets only some of the tokens, as an expert does.
    """
    if inner.shape[0] % len(sizes):
        return sizes.mean().to(inner)
    repeated = sizes.to(inner).repeat_interleave(inner.shape[0] // len(sizes))
    return repeated.reshape(-1, *[1] * (inner.ndim - 1))


def _parameter_hooks(
    model: nn.Module, parameter: str, names: Sequence[str], factors: Factors, sizes: Tensor | None
) -> list[RemovableHandle]:
    """Replace a parameter by its changed value during each forward pass of the decoder layer that holds it."""
    path, _, attribute = parameter.rpartition(".")
    owner, weight = model.get_submodule(path), model.get_parameter(parameter)
    if weight.is_meta:
        raise CheckpointError(
            f"expected {parameter} in the memory of a device, got it offloaded",
            remedy="use a larger GPU, or more of them, or set SAFEGENE_DEVICE=cpu",
        )
    scale = None if sizes is None else sizes.mean()

    def before(*_: Any) -> None:
        change = _within_parameter(model, weight, names, factors)
        change = change if scale is None else change * scale.to(change)
        held = owner.__dict__.get(attribute, weight)  # changed already where hooks are nested
        owner.__dict__[attribute] = held + change.to(weight.dtype)  # found before the registered parameter

    def after(*_: Any) -> None:
        owner.__dict__.pop(attribute, None)

    layer = model.get_submodule(_layer_path(path))
    return [layer.register_forward_pre_hook(before), layer.register_forward_hook(after, always_call=True)]


def _layer_path(path: str) -> str:
    """The path of the decoder layer around a module; the module's own where it is in none."""
    if layer_of(f"{path}.") is None:
        return path
    parts = path.split(".")
    return ".".join(parts[: 1 + next(at for at, part in enumerate(parts) if part.isdigit())])


def _within_parameter(model: nn.Module, weight: Tensor, names: Sequence[str], factors: Factors) -> Tensor:
    """The changes of matrices within one parameter, in its shape and in float32."""
    groups: dict[tuple[Any, ...], list[tuple[str, Matrix]]] = defaultdict(list)
    for name in names:
        matrix = matrix_of(model, name)
        groups[matrix.offset, matrix.shape, matrix.turned].append((name, matrix))
    total = torch.zeros((), device=weight.device)
    for (offset, _, turned), members in groups.items():
        pairs = [factors(name, weight.device) for name, _ in members]
        rank = max(up.shape[1] for up, _ in pairs)
        ups = torch.stack([F.pad(up, (0, rank - up.shape[1])) for up, _ in pairs])
        downs = torch.stack([F.pad(down, (0, 0, 0, rank - down.shape[0])) for _, down in pairs])
        dense = ups @ downs
        dense = dense.transpose(1, 2) if turned else dense
        (row, column), (rows, columns) = offset, dense.shape[1:]
        room = (column, weight.shape[-1] - column - columns, row, weight.shape[-2] - row - rows)
        if weight.ndim == 3:
            experts = torch.tensor([matrix.expert for _, matrix in members], device=weight.device)
            dense = dense.new_zeros(weight.shape[0], rows, columns).index_copy(0, experts, dense)
        else:
            dense = dense[0]
        total = total + F.pad(dense, room)
    return total
