"""Safetensors shards, written as a stream: a shard's header, then one block of rows at a time, behind the caller.

Equal plans and tensors give equal bytes.

Usage::

    shards = plan_shards([("a.weight", (4, 4), torch.bfloat16)], max_shard_bytes=1 << 30)
    for shard in shards:
        with ShardWriter(folder, shard) as writer:
            writer.write("a.weight", tensor)  # or one block of rows after the other
    write_index(folder, shards)
"""

import hashlib
import json
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from safegene.checkpoints.header import BITS
from safegene.checkpoints.wanted import INDEX, WEIGHTS
from safegene.errors import FormatError, ShapeMismatch
from safegene.workspace.digest import PREFIX, canonical_json

NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
BEHIND = 8  # blocks that may wait to be written
Entry = tuple[str, Sequence[int], torch.dtype]


@dataclass(frozen=True)
class Shard:
    """One file of a plan.

    Attributes:
        file: its name.
        entries: (name, shape, dtype) of its tensors, in the order of writing.
    """

    file: str
    entries: tuple[Entry, ...]

    @property
    def header(self) -> bytes:
        """The bytes before the data: the length of the JSON, and the JSON."""
        header: dict[str, Mapping[str, object]] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for entry in self.entries:
            name, shape, dtype = entry
            end = offset + _bytes(entry)
            header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        text = canonical_json(header)
        text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8
        return len(text).to_bytes(8, "little") + text


def plan_shards(entries: Sequence[Entry], *, max_shard_bytes: int) -> tuple[Shard, ...]:
    """The tensors in files of at most ``max_shard_bytes``, unless a single tensor is larger, in the order given."""
    split: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if split[-1] and size + _bytes(entry) > max_shard_bytes:
            split.append([])
            size = 0
        split[-1].append(entry)
        size += _bytes(entry)
    count = len(split)
    names = [WEIGHTS] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    return tuple(Shard(name, tuple(part)) for name, part in zip(names, split, strict=True))


def write_index(out: Path, shards: Sequence[Shard]) -> None:
    """Write the index that names each tensor's file, where there are several."""
    if len(shards) == 1:
        return
    places = {name: shard.file for shard in shards for name, _, _ in shard.entries}
    total = sum(_bytes(entry) for shard in shards for entry in shard.entries)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (out / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class ShardWriter:
    """Write the tensors of one shard in its order; a thread writes and hashes the blocks.

    Use as a context manager. Leaving it before every tensor is written raises; the file is then incomplete.
    """

    def __init__(self, out: Path, shard: Shard) -> None:
        """Write into ``out``, an existing folder."""
        self.path = out / shard.file
        self._remaining = deque(shard.entries)
        self._written = 0  # numbers of the tensor that is being written
        self._header = shard.header
        self._hash = hashlib.sha256()
        self._waiting: deque[Future[None]] = deque()
        self._buffers = deque(torch.empty(0, dtype=torch.uint8) for _ in range(BEHIND + 2))

    def buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor to fill and to write before the next one is asked for; its memory is used again later.

        Fresh memory for every block costs a page fault per 4 KiB.
        """
        size = torch.Size(shape).numel() * dtype.itemsize
        raw = self._buffers.popleft()  # given out BEHIND + 2 blocks ago: it is written
        if len(raw) < size:
            raw = torch.empty(size, dtype=torch.uint8)
        self._buffers.append(raw)
        return raw[:size].view(dtype).view(torch.Size(shape))

    def write(self, name: str, block: Tensor) -> None:
        """Write the next tensor of the shard, or its next rows, cast to the planned dtype.

        A block that has that dtype already is not copied, so it must not change afterwards.

        Raises:
            FormatError: the shard has another tensor next.
            ShapeMismatch: the block has another shape than planned, or more rows than are left.
        """
        if not self._remaining or self._remaining[0][0] != name:
            raise FormatError(f"expected the tensor {self._remaining[0][0] if self._remaining else 'none'}, got {name}")
        _, shape, dtype = self._remaining[0]
        left = torch.Size(shape).numel() - self._written
        if block.numel() > left or tuple(block.shape[-1:]) != (tuple(shape[-1:]) if len(shape) > 1 else block.shape):
            raise ShapeMismatch(f"expected shape {list(shape)} of {name}, got {list(block.shape)}, in {self.path}")
        flat = block.detach().to("cpu", dtype).contiguous().reshape(-1).view(torch.uint8)
        self._put(flat.numpy().data)
        self._written += block.numel()
        if block.numel() == left:
            self._remaining.popleft()
            self._written = 0

    @property
    def digest(self) -> str:
        """The digest of the whole file; to be read after the ``with`` block."""
        return PREFIX + self._hash.hexdigest()

    def __enter__(self) -> "ShardWriter":
        self._file = self.path.open("wb", buffering=0)
        self._thread = ThreadPoolExecutor(1)
        self._put(memoryview(self._header))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file, self._thread:
            if kind is None:
                while self._waiting:
                    self._waiting.popleft().result()
        if kind is None and self._remaining:
            raise FormatError(
                f"expected {len(self._remaining)} more tensors, the next {self._remaining[0][0]}, in {self.path}"
            )

    def _put(self, data: memoryview) -> None:
        self._waiting.append(self._thread.submit(self._write, data))
        if len(self._waiting) > BEHIND:
            self._waiting.popleft().result()

    def _write(self, data: memoryview) -> None:
        self._hash.update(data)
        done = 0
        while done < len(data):
            done += self._file.write(data[done:])


def _bytes(entry: Entry) -> int:
    return torch.Size(entry[1]).numel() * BITS[NAMES[entry[2]]] // 8
