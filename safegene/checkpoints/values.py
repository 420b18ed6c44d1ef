"""The numbers of a tensor: read from the file, and checked for NaN, infinity and absurd sizes without torch."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from safegene.checkpoints.header import TensorSpec
from safegene.errors import CheckpointError
from safegene.workspace.digest import BLOCK as HASHED
from safegene.workspace.digest import PREFIX

if TYPE_CHECKING:
    import torch

BLOCK = 4 << 20  # bytes checked at once, in one buffer
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

    return as_tensor(torch.from_numpy(np.fromfile(path, np.uint8, spec.end - spec.start, offset=spec.start)), spec)


def as_tensor(raw: "torch.Tensor", spec: TensorSpec) -> "torch.Tensor":
    """Bytes (n,) of uint8 as the tensor that a header describes, without a copy."""
    import torch

    dtypes = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if not spec.numel:
        return torch.empty(spec.shape, dtype=dtypes[spec.dtype])
    return raw.view(dtypes[spec.dtype]).reshape(spec.shape)


def check_values(path: Path, specs: Iterable[TensorSpec]) -> None:
    """Refuse NaN, infinity and numbers of 2^20 or more, by their exponent bits; reads blocks of 4 MiB.

    Raises:
        CheckpointError: names the first tensor that holds one.
    """
    with path.open("rb", buffering=0) as file:
        for spec in specs:
            file.seek(spec.start)
            _require_plausible(path, spec, max(map(_largest, _blocks(file, path, spec)), default=0))


def digest_and_check(path: Path, specs: Iterable[TensorSpec]) -> str:
    """The digest of a file, in the same pass over its bytes as `check_values`; a thread hashes what is being checked.

    Args:
        path: the file.
        specs: every tensor of its header, which cover the bytes after the header.

    Raises:
        CheckpointError: names the first tensor that holds NaN, infinity or a number of 2^20 or more.
    """
    total = hashlib.sha256()
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as hashing:
        for spec in sorted((one for one in specs if one.numel), key=lambda one: one.start):
            while between := file.read(min(HASHED, spec.start - file.tell())):
                total.update(between)
            top = 0
            for bits in _blocks(file, path, spec):
                hashed = hashing.submit(total.update, bits.data)
                top = max(top, _largest(bits))
                hashed.result()
            _require_plausible(path, spec, top)
        while rest := file.read(HASHED):
            total.update(rest)
    return PREFIX + total.hexdigest()


def _require_plausible(path: Path, spec: TensorSpec, largest: int) -> None:
    """Refuse a tensor by the bits of its largest number, without sign."""
    _, mantissa, bias = _FLOATS[spec.dtype]
    top = largest >> mantissa
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


def _blocks(file: BinaryIO, path: Path, spec: TensorSpec) -> "Iterator[np.ndarray[Any, np.dtype[Any]]]":
    """The bits of the tensor's numbers from where the file stands, in one buffer that each block overwrites."""
    kind = np.dtype(_FLOATS[spec.dtype][0])
    buffer = np.empty(min(spec.numel, BLOCK // kind.itemsize), kind)
    for first in range(0, spec.numel, max(1, buffer.size)):
        bits = buffer[: spec.numel - first]
        if (got := read_into(file, bits.data.cast("B"))) < bits.nbytes:
            raise CheckpointError(f"expected {bits.nbytes} bytes of {spec.name}, got {got}, in {path}")
        yield bits


def read_into(file: BinaryIO, view: memoryview) -> int:
    """Fill ``view`` from an unbuffered file; how many bytes there were, fewer only at the file's end."""
    done = 0
    while done < len(view) and (got := file.readinto(view[done:])):  # type: ignore[attr-defined]
        done += got
    return done


def _largest(bits: "np.ndarray[Any, np.dtype[Any]]") -> int:
    sign = bits.dtype.type(1 << (8 * bits.itemsize - 1))
    return int((bits & ~sign).max())
