"""The numbers of a tensor: read from the file, and checked for NaN, infinity and absurd sizes without torch."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from safegene.checkpoints.header import TensorSpec
from safegene.errors import CheckpointError

if TYPE_CHECKING:
    import torch

BLOCK = 32 << 20  # bytes checked at once
LARGEST_EXPONENT = 20  # no trained model has a weight of 2^20 or more
_FLOATS: Mapping[str, tuple[Any, int, int]] = {  # integer type of the bits, bits of the mantissa, exponent bias
    "F64": (np.uint64, 52, 1023),
    "F32": (np.uint32, 23, 127),
    "F16": (np.uint16, 10, 15),
    "BF16": (np.uint16, 7, 127),
}
FLOATS = tuple(_FLOATS)


def read_tensor(path: Path, spec: TensorSpec) -> "torch.Tensor":
    """The tensor in its stored dtype, on the CPU; no other part of the file is read."""
    import torch

    dtypes = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if not spec.numel:
        return torch.empty(spec.shape, dtype=dtypes[spec.dtype])
    raw = np.fromfile(path, np.uint8, spec.end - spec.start, offset=spec.start)
    return torch.from_numpy(raw).view(dtypes[spec.dtype]).reshape(spec.shape)


def check_values(path: Path, specs: Iterable[TensorSpec]) -> None:
    """Refuse NaN, infinity and numbers of 2^20 or more, by their exponent bits; reads blocks of 32 MiB.

    Raises:
        CheckpointError: names the first tensor that holds one.
    """
    for spec in specs:
        kind, mantissa, bias = _FLOATS[spec.dtype]
        top = _largest_exponent(path, spec, np.dtype(kind), mantissa)
        if top == 2 * bias + 1:
            raise CheckpointError(
                f"expected finite numbers in {spec.name}, got NaN or Inf, in {path}",
                remedy="its training diverged, or the file is damaged: use another checkpoint",
            )
        if top - bias >= LARGEST_EXPONENT:
            raise CheckpointError(
                f"expected numbers below 2^{LARGEST_EXPONENT} in {spec.name}, got 2^{top - bias} or more, in {path}",
                remedy="the file is damaged, or its dtype is wrong",
            )


def _largest_exponent(path: Path, spec: TensorSpec, kind: "np.dtype[Any]", mantissa: int) -> int:
    left, top = spec.numel, 0
    sign = kind.type(~(1 << (8 * kind.itemsize - 1)) & ((1 << 8 * kind.itemsize) - 1))
    with path.open("rb") as file:
        file.seek(spec.start)
        while left:
            count = min(left, BLOCK // kind.itemsize)
            bits = np.fromfile(file, kind, count)
            if bits.size < count:
                raise CheckpointError(f"expected {count} numbers of {spec.name}, got {bits.size}, in {path}")
            top = max(top, int((bits & sign).max()))
            left -= count
    return top >> mantissa
