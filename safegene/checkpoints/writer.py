"""Safetensors shards, written as a stream: a shard's header, then one tensor at a time.

Equal plans and tensors give equal bytes.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from safegene.checkpoints.header import BITS
from safegene.checkpoints.wanted import INDEX, WEIGHTS
from safegene.errors import FormatError, ShapeMismatch
from safegene.workspace.digest import canonical_json

NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class ShardedWriter:
    """Write tensors in the order of a plan into shards of bounded size, and an index where there are several.

    Use as a context manager. Leaving it before every tensor is written raises; the folder is then incomplete.
    """

    def __init__(
        self, out: Path, plan: Sequence[tuple[str, Sequence[int]]], *, dtype: torch.dtype, max_shard_bytes: int
    ) -> None:
        """Plan the shards.

        Args:
            out: an existing folder.
            plan: (name, shape) in the order of writing.
            dtype: of every tensor.
            max_shard_bytes: the largest size of a shard, unless a single tensor is larger.
        """
        self.out, self.dtype = out, dtype
        self._shards = _split([(name, tuple(shape), _bytes(shape, dtype)) for name, shape in plan], max_shard_bytes)
        count = len(self._shards)
        self._files = [
            WEIGHTS if count == 1 else f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)
        ]
        self._remaining = [(i, name, shape) for i, shard in enumerate(self._shards) for name, shape, _ in shard]
        self._file: BinaryIO | None = None
        self._open = -1

    def write(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor of the plan, cast to the writer's dtype.

        Raises:
            FormatError: the plan has another tensor next.
            ShapeMismatch: the tensor has another shape than planned.
        """
        if not self._remaining or self._remaining[0][1] != name:
            raise FormatError(
                f"expected the tensor {self._remaining[0][1] if self._remaining else 'none'} next, got {name}"
            )
        shard, _, shape = self._remaining.pop(0)
        if tuple(tensor.shape) != shape:
            raise ShapeMismatch(f"expected shape {list(shape)} of {name}, got {list(tensor.shape)}, in {self.out}")
        file = self._shard(shard)
        flat = tensor.detach().to("cpu", self.dtype).contiguous().reshape(-1)
        flat.view(torch.uint8).numpy().tofile(file)

    def __enter__(self) -> "ShardedWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._file.close()
        if kind is None:
            self._finish()

    def _finish(self) -> None:
        if self._remaining:
            raise FormatError(
                f"expected {len(self._remaining)} more tensors, the next {self._remaining[0][1]}, in {self.out}"
            )
        if len(self._shards) == 1:
            return
        places = {name: self._files[i] for i, shard in enumerate(self._shards) for name, _, _ in shard}
        total = sum(size for shard in self._shards for *_, size in shard)
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (self.out / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _shard(self, number: int) -> BinaryIO:
        if number != self._open or self._file is None:
            if self._file:
                self._file.close()
            self._file = (self.out / self._files[number]).open("wb")
            self._file.write(_header(self._shards[number], NAMES[self.dtype]))
            self._open = number
        return self._file


Entry = tuple[str, tuple[int, ...], int]


def _split(entries: Sequence[Entry], most: int) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    for entry in entries:
        if shards[-1] and sum(size for *_, size in shards[-1]) + entry[2] > most:
            shards.append([])
        shards[-1].append(entry)
    return shards


def _header(entries: Sequence[Entry], dtype: str) -> bytes:
    header: dict[str, Mapping[str, object]] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape, size in entries:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = canonical_json(header)
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def _bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * BITS[NAMES[dtype]] // 8
