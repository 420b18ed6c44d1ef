"""The names of dtypes in ``params.yaml`` and commands, and the bytes of weights in them."""

from collections import Counter
from collections.abc import Iterable

import torch

from safegene.checkpoints.header import TensorSpec
from safegene.errors import ParamsError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FOUR_BIT = "4bit"
FOUR_BIT_BYTES = 0.5 + 4 / 64  # a number of a linear layer: 4 bits, and a float32 scale per block of 64 numbers
_STORED = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def dtype_named(name: str) -> torch.dtype:
    """The dtype of that name; bfloat16 for ``4bit``, whose products are computed in it.

    Raises:
        ParamsError: there is no such dtype.
    """
    if name == FOUR_BIT:
        return torch.bfloat16
    if name not in DTYPES:
        raise ParamsError(f"expected a dtype of auto, {', '.join(DTYPES)}, {FOUR_BIT}, got {name!r}")
    return DTYPES[name]


def resolve_dtype(setting: str, specs: Iterable[TensorSpec]) -> str:
    """The dtype that a setting means for a checkpoint; ``auto`` is the one in which most of its numbers are stored.

    Numbers stored in float64 are loaded in float32.

    Args:
        setting: ``auto``, or the name of a dtype.
        specs: the tensors of the checkpoint.

    Raises:
        ParamsError: there is no such dtype.
    """
    if setting != "auto":
        dtype_named(setting)
        return setting
    numbers = Counter[str]()
    for spec in specs:
        numbers[_STORED[spec.dtype]] += spec.numel
    return max(sorted(numbers), key=lambda name: numbers[name], default="float32")


def bytes_in_memory(name: str, specs: Iterable[TensorSpec]) -> int:
    """Bytes of a checkpoint's weights in a dtype; with ``4bit``, embeddings and vectors stay in bfloat16."""
    if name != FOUR_BIT:
        return dtype_named(name).itemsize * sum(spec.numel for spec in specs)
    return round(sum(spec.numel * (FOUR_BIT_BYTES if _is_layer(spec) else 2) for spec in specs))


def _is_layer(spec: TensorSpec) -> bool:
    return len(spec.shape) == 2 and not any(part in spec.name for part in ("embed", "lm_head", "wte", "wpe"))
