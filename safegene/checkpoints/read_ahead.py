"""Parts of tensors, read by a thread ahead of their use, within a bound on memory.

Usage::

    groups = [[(path, rows) for rows in blocks_of(spec, numbers=1 << 22)]]
    with read_ahead(groups, max_bytes=128 << 20) as parts:
        for tensors in parts:
            ...  # valid until the next group
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import BinaryIO

import torch
from torch import Tensor

from safegene.checkpoints.header import TensorSpec
from safegene.checkpoints.values import as_tensor, read_into
from safegene.errors import CheckpointError

ALIGNMENT = 64  # bytes; a part of a buffer begins at a multiple of it
Part = tuple[Path, TensorSpec]
Filled = tuple[Tensor, list[Tensor]] | BaseException


def blocks_of(spec: TensorSpec, *, numbers: int) -> Iterator[TensorSpec]:
    """The tensor in blocks of rows (of its first dimension), each of at most ``numbers`` numbers, or of one row."""
    if not spec.shape or not spec.numel:
        yield spec
        return
    rows, row_bytes = spec.shape[0], (spec.end - spec.start) // spec.shape[0]
    step = max(1, numbers * rows // spec.numel)
    for first in range(0, rows, step):
        last = min(first + step, rows)
        start, end = (spec.start + at * row_bytes for at in (first, last))
        yield TensorSpec(spec.name, spec.dtype, (last - first, *spec.shape[1:]), start, end)


@contextmanager
def read_ahead(groups: Sequence[Sequence[Part]], *, max_bytes: int) -> Iterator[Iterator[list[Tensor]]]:
    """Iterate over the tensors of each group, in their stored dtype, on the CPU.

    A thread reads the next groups into buffers of the size of the largest group while the caller computes: as many as
    fit in ``max_bytes``, at least two. A group's tensors lie in such a buffer, so they are valid until the next group
    is taken.

    Raises:
        CheckpointError: a file is shorter than its header says.
        OSError: a file cannot be read.
    """
    size = max((_size(group) for group in groups), default=0)
    free, ready = SimpleQueue[Tensor](), SimpleQueue[Filled]()
    for _ in range(min(len(groups), max(2, max_bytes // max(1, size)))):
        free.put(torch.empty(size, dtype=torch.uint8))
    stop = Event()
    thread = Thread(target=_read, args=(groups, free, ready, stop), daemon=True)
    thread.start()
    try:
        yield _taken(len(groups), free, ready)
    finally:
        stop.set()
        free.put(torch.empty(size, dtype=torch.uint8))  # wakes a thread that waits for one
        thread.join()


def _taken(count: int, free: SimpleQueue[Tensor], ready: SimpleQueue[Filled]) -> Iterator[list[Tensor]]:
    for _ in range(count):
        item = ready.get()
        if isinstance(item, BaseException):
            raise item
        buffer, tensors = item
        yield tensors
        free.put(buffer)


def _read(
    groups: Iterable[Sequence[Part]],
    free: SimpleQueue[Tensor],
    ready: SimpleQueue[Filled],
    stop: Event,
) -> None:
    files: dict[Path, BinaryIO] = {}
    try:
        for group in groups:
            buffer = free.get()
            if stop.is_set():
                return
            ready.put((buffer, _fill(buffer, group, files)))
    except BaseException as error:  # noqa: BLE001 (raised again where the group is taken)
        ready.put(error)
    finally:
        for file in files.values():
            file.close()


def _fill(buffer: Tensor, group: Sequence[Part], files: dict[Path, BinaryIO]) -> list[Tensor]:
    tensors, at = [], 0
    for path, spec in group:
        if path not in files:
            files[path] = path.open("rb", buffering=0)
        files[path].seek(spec.start)
        raw = buffer[at : at + spec.end - spec.start]
        if (got := read_into(files[path], raw.numpy().data)) < len(raw):
            raise CheckpointError(f"expected {len(raw)} bytes of {spec.name}, got {got}, in {path}")
        tensors.append(as_tensor(raw, spec))
        at += _aligned(spec.end - spec.start)
    return tensors


def _size(group: Sequence[Part]) -> int:
    return sum(_aligned(spec.end - spec.start) for _, spec in group)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
