"""Peak memory, from names and shapes alone: of every stage, and of a training step on a model that is loaded.

Weights are counted in the dtype in which they are loaded. Numbers that a layer holds per token are counted as the
inputs and outputs of its matrices, so no architecture needs a formula of its own. `benchmarks.engine.memory` compares
`stage_peak_bytes` with what stages take.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psutil
import torch

from safegene.checkpoints.checkpoint import Checkpoint, layer_of
from safegene.checkpoints.dtypes import bytes_in_memory, dtype_named, resolve_dtype
from safegene.models.structure import resolved_config, structure_of, text_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PROCESS = 440 << 20  # bytes of Python with torch, transformers and peft
STREAM = 512 << 20  # bytes of a stage that streams weights, besides two of its largest tensors in float32
MICROBATCH_SHARE = 1 / 16  # of the device's whole memory, for the activations of one microbatch
GPU_SHARE = 0.9  # of a GPU's memory that weights and activations may fill
ROWS, SELECT_ROWS = 12, 32  # prompts at a time in calibrate and in select


@dataclass(frozen=True)
class ModelSize:
    """What peak memory depends on.

    Attributes:
        weights: bytes of all weights in memory.
        parameters: their number; tied ones count once.
        largest: numbers of the largest tensor.
        layers: decoder layers.
        hidden: width of the residual stream.
        width: inputs and outputs of the matrices that one token passes in the widest layer.
        heads: attention heads.
        keys: numbers that the cache holds per token and layer.
        vocabulary: tokens.
        itemsize: bytes of an activation.
    """

    weights: int
    parameters: int
    largest: int
    layers: int
    hidden: int
    width: int
    heads: int
    keys: int
    vocabulary: int
    itemsize: int


def size_of_checkpoint(checkpoint: Checkpoint, dtype: str = "auto") -> ModelSize:
    """The size of a checkpoint loaded in ``dtype``, from its config and headers.

    Raises:
        ParamsError: there is no such dtype.
        CheckpointError: transformers cannot read the config.
    """
    specs = [checkpoint.specs[name] for name in checkpoint.shapes]
    name = resolve_dtype(dtype, specs)
    config = resolved_config(checkpoint.config, len(checkpoint.specs), str(checkpoint.root))
    size = size_of_shapes(config, checkpoint.shapes, dtype_named(name).itemsize)
    return replace(size, weights=bytes_in_memory(name, specs))


def size_of_shapes(config: "PretrainedConfig", shapes: Mapping[str, Sequence[int]], itemsize: int) -> ModelSize:
    """The size of a model of these tensors, name -> shape, in a dtype of ``itemsize`` bytes."""
    numbers = [_product(shape) for shape in shapes.values()]
    return replace(
        _activations(config, shapes, itemsize),
        weights=itemsize * sum(numbers),
        parameters=sum(numbers),
        largest=max(numbers),
    )


def size_of_model(model: "PreTrainedModel") -> ModelSize:
    """The size of a loaded model."""
    shapes = {name: one.shape for name, one in structure_of(model).matrices.items()}
    size = _activations(model.config, shapes, dtype_named(str(model.dtype).removeprefix("torch.")).itemsize)
    parameters = list(model.parameters())
    numbers = [one.numel() for one in parameters]
    weights = sum(one.numel() * one.element_size() for one in parameters)
    return replace(size, weights=weights, parameters=sum(numbers), largest=max(numbers))


def _activations(config: "PretrainedConfig", shapes: Mapping[str, Sequence[int]], itemsize: int) -> ModelSize:
    text: Any = text_config(config)
    heads = int(getattr(text, "num_attention_heads", 1) or 1)
    hidden = int(text.hidden_size)
    head = int(getattr(text, "head_dim", None) or hidden // heads)
    keys = 2 * head * int(getattr(text, "num_key_value_heads", None) or heads)
    experts = int(getattr(text, "num_experts_per_tok", None) or 1)
    return ModelSize(
        weights=0,
        parameters=0,
        largest=0,
        layers=int(text.num_hidden_layers),
        hidden=hidden,
        width=_width(shapes, experts),
        heads=heads,
        keys=keys,
        vocabulary=int(text.vocab_size),
        itemsize=itemsize,
    )


def _width(shapes: Mapping[str, Sequence[int]], experts: int) -> int:
    """Inputs and outputs of the matrices of the widest layer; of several experts only those that a token passes."""
    layers: dict[int, dict[str, int]] = defaultdict(dict)
    for name, shape in shapes.items():
        layer = layer_of(name)
        if layer is None or len(shape) < 2:
            continue
        alike = re.sub(r"\.\d+(?=\.|$)", "", name)
        layers[layer][alike] = sum(shape[-2:]) * (experts if "experts" in name else 1)
    return max((sum(parts.values()) for parts in layers.values()), default=0)


def row_bytes(size: ModelSize, tokens: int, keep: int, *, gradient: bool, checkpointed: bool = False) -> int:
    """Bytes that one row of a batch needs in a forward pass, or in a forward and a backward pass.

    Args:
        size: of the model.
        tokens: in the row.
        keep: positions whose logits are computed.
        gradient: whether activations are kept for a backward pass.
        checkpointed: whether only the inputs of layers are kept, and each layer is computed again.
    """
    layer = tokens * (size.width + size.heads * tokens) * size.itemsize
    logits = keep * size.vocabulary * (size.itemsize + 8)
    if not gradient:
        return layer + logits
    logits += keep * size.vocabulary * (size.itemsize + 8)
    if checkpointed:
        return tokens * size.layers * size.hidden * size.itemsize + 3 * layer + logits
    return (size.layers + 1) * layer + logits


@dataclass(frozen=True)
class Microbatches:
    """How a batch is computed.

    Attributes:
        rows: at a time.
        checkpointed: whether the activations within layers are computed again in the backward pass.
    """

    rows: int
    checkpointed: bool


def microbatches(model: "PreTrainedModel", rows: int, tokens: int, keep: int, *, gradient: bool = True) -> Microbatches:
    """How to compute a batch within `MICROBATCH_SHARE` of the whole memory of the model's device.

    It depends on sizes and on the machine, not on what is free at the moment, so that a repeated run computes the same.
    A batch that fits is computed whole and without checkpointing.

    Args:
        model: a loaded model.
        rows: of the batch.
        tokens: of its longest row.
        keep: positions of a row whose logits are computed.
        gradient: whether a backward pass follows.
    """
    size, budget = size_of_model(model), MICROBATCH_SHARE * device_bytes(model.device)
    if rows * row_bytes(size, tokens, keep, gradient=gradient) <= budget:
        return Microbatches(rows, checkpointed=False)
    one = row_bytes(size, tokens, keep, gradient=gradient, checkpointed=gradient)
    return Microbatches(max(1, min(rows, int(budget // one))), checkpointed=gradient)


def device_bytes(device: torch.device) -> int:
    """The whole memory of a device."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def stage_peak_bytes(
    size: ModelSize,
    *,
    tokens: int = 128,
    keep: int = 14,
    rows: int = ROWS,
    batch_size: int = 128,
    new_tokens: int = 256,
    factors: int = 0,
    bases: int = 1,
    budget: int | None = None,
) -> dict[str, int]:
    """The most memory that each stage takes, in bytes, its process included.

    Args:
        size: of the aligned model, and of a target.
        tokens: of the longest prompt.
        keep: first tokens of a reply that are trained on.
        rows: prompts of a step of calibrate.
        batch_size: prompts at a time in evaluate.
        new_tokens: of the longest reply.
        factors: numbers of the safety vector's low-rank factors.
        bases: different full checkpoints that evaluate holds at once.
        budget: bytes for the activations of one microbatch; None for those of this machine's main memory.
    """
    budget = round(MICROBATCH_SHARE * device_bytes(torch.device("cpu"))) if budget is None else budget
    plain = rows * row_bytes(size, tokens + keep, keep, gradient=True)
    least = row_bytes(size, tokens + keep, keep, gradient=True, checkpointed=True)
    step = plain if plain <= budget else max(least, min(budget, rows * least))
    stream = STREAM + 2 * 4 * size.largest
    loaded = PROCESS + size.weights
    held = batch_size * (tokens + new_tokens) * size.layers * size.keys * size.itemsize
    reading = batch_size * row_bytes(size, tokens, 1, gradient=False)
    return {
        "fetch": STREAM,
        "degrade": loaded + step + 16 * factors,
        "extract": stream,
        "compress": PROCESS + 3 * 4 * factors,
        "select": loaded + SELECT_ROWS * row_bytes(size, tokens, 1, gradient=False) + 8 * factors,
        "calibrate": loaded + step + 16 * factors,
        "evaluate": PROCESS + bases * size.weights + held + reading,
        "merge": stream,
    }


@dataclass(frozen=True)
class Placement:
    """What a stage takes on some GPUs.

    Attributes:
        gpus: how many.
        per_gpu: bytes on each.
        offloaded: bytes of weights that stay in the main memory, because the GPUs do not hold them.
    """

    gpus: int
    per_gpu: int
    offloaded: int


def placements(size: ModelSize, peak: int, gpus: Iterable[int], gpu_bytes: int) -> list[Placement]:
    """A stage's peak on so many GPUs of ``gpu_bytes`` bytes each: layers are spread, activations are on every GPU."""
    found = []
    for count in gpus:
        room, rest = int(GPU_SHARE * gpu_bytes), max(0, peak - PROCESS - size.weights)
        on_gpus = min(size.weights, count * max(0, room - rest))
        found.append(Placement(count, -(-on_gpus // count) + rest, size.weights - on_gpus))
    return found


def _product(shape: Sequence[int]) -> int:
    total = 1
    for one in shape:
        total *= one
    return total
