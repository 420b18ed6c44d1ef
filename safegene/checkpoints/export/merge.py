"""A merged checkpoint, ``W' = round(W + dW)``, streamed, and the share of each dW that is left after rounding.

Blocks of rows are read ahead, added, and written behind: no matrix is ever whole in memory. Every tensor keeps its own
dtype unless another is asked for. bf16 erases small changes (at ‖dW‖/‖W‖ = 0.0003 four fifths of them), so a merge that
keeps less than `MIN_SURVIVAL` is refused unless it is asked for.
"""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safegene.checkpoints.checkpoint import Checkpoint
from safegene.checkpoints.dtypes import DTYPES as STORED
from safegene.checkpoints.export.draft import resumable_draft
from safegene.checkpoints.header import TensorSpec
from safegene.checkpoints.read_ahead import Part, blocks_of, read_ahead
from safegene.checkpoints.wanted import INDEX
from safegene.checkpoints.writer import NAMES, Shard, ShardWriter, plan_shards, write_index
from safegene.errors import CheckpointError, ParamsError, ShapeMismatch
from safegene.vectors.linalg import LowRank, Patch, inner_product, row_blocks
from safegene.workspace.digest import digest_bytes, digest_json

MIN_SURVIVAL = 0.9
SHARD_BYTES = 4 << 30
READ_AHEAD = 64 << 20  # bytes
NUMBERS = 1 << 22  # that are read and written at once
DTYPES = {name: dtype for dtype, name in NAMES.items()}
Terms = dict[str, tuple[float, float]]
"""Matrix -> energy of its change that is left, and energy of its change."""


@dataclass(frozen=True)
class MergedCheckpoint:
    """How much of a change is left after rounding to the merged checkpoint's dtype.

    Attributes:
        dtype: how most numbers are stored; some tensors may have another dtype, as in the target.
        survival: share of the change that is left, 0..1, weighted by the matrices' energy.
        least_survival: the smallest share of a matrix.
        least_survival_matrix: that matrix; None where nothing was changed.
        matrices: matrix -> share.
    """

    dtype: str
    survival: float
    least_survival: float
    least_survival_matrix: str | None
    matrices: Mapping[str, float]


@dataclass(frozen=True)
class Block:
    """Rows of a stored tensor, and the change of the matrix that they belong to.

    Attributes:
        tensor: the stored tensor.
        spec: where the rows lie.
        shard: in which file.
        matrix: name of the matrix; None where nothing is added.
        start: index of the first row in the matrix.
    """

    tensor: str
    spec: TensorSpec
    shard: str
    matrix: str | None
    start: int


def merge(
    checkpoint: Checkpoint,
    patch: Patch,
    *,
    out: Path,
    dtype: str = "auto",
    lossy: bool = False,
    max_shard_bytes: int = SHARD_BYTES,
    source: str | None = None,
) -> MergedCheckpoint:
    """Write the merged checkpoint atomically. After a kill, finished shards are verified and kept.

    Args:
        checkpoint: W, (rows, columns) per matrix; a matrix may be a slice of a stored tensor.
        patch: matrix name -> change; summed with W in fp32.
        out: a new folder.
        dtype: ``auto``: every tensor as it is stored in ``checkpoint``. Another one is that of all tensors of the dtype
            that most of the checkpoint's numbers have; the rest, such as the fp32 router biases of a bf16 model, keep
            theirs.
        lossy: merge although rounding erases much of the change.
        max_shard_bytes: of one shard.
        source: digest of the checkpoint; without one, nothing is kept of a merge that was killed.

    Raises:
        CheckpointError: too little of the change would survive, ``out`` exists, or another process is writing it.
        TensorMissing: the checkpoint has no such matrix.
        ShapeMismatch: a change has another shape than its matrix.
        ParamsError: there is no such dtype.
    """
    _require_fit(checkpoint, patch)
    if out.exists():
        raise CheckpointError(f"expected a new folder for the merged checkpoint, got {out}, which exists")
    stored = _most_common(checkpoint)
    wanted = stored if dtype == "auto" else _named(dtype)
    dtypes = {
        name: wanted if DTYPES[spec.dtype] == stored else DTYPES[spec.dtype] for name, spec in checkpoint.specs.items()
    }
    entries = [(name, spec.shape, dtypes[name]) for name, spec in checkpoint.specs.items()]
    shards = plan_shards(entries, max_shard_bytes=max_shard_bytes)
    identity = _identity(checkpoint, patch, str(wanted), max_shard_bytes, source) if source else None
    with resumable_draft(out, identity) as draft:
        terms = Terms()
        for shard in shards:
            done = draft.finished(shard.file)
            if done is None:
                found, digest = _write(checkpoint, patch, draft.path, shard)
                draft.finish(shard.file, digest, found)
            terms |= found if done is None else {name: (kept, whole) for name, (kept, whole) in done.items()}
        write_index(draft.path, shards)
        merged = _measured(terms, str(wanted).removeprefix("torch."))
        if not math.isfinite(merged.survival):
            raise CheckpointError(
                f"expected finite weights in {merged.dtype}, got a sum that it cannot hold, for {out}",
                remedy="merge with --dtype float32",
            )
        if merged.survival < MIN_SURVIVAL and not lossy:
            raise CheckpointError(
                f"expected {MIN_SURVIVAL:.0%} of the repair to survive in {merged.dtype}, got {merged.survival:.0%} "
                f"(least: {merged.least_survival:.0%} of {merged.least_survival_matrix}), for {out}",
                remedy="ship the adapter unmerged (`safegene export`), merge with --dtype float32, or insist with "
                "--lossy",
            )
        _copy_rest(checkpoint, draft.path, None if wanted == stored else merged.dtype)
    return merged


def _named(dtype: str) -> torch.dtype:
    if dtype not in STORED:
        raise ParamsError(f"expected a dtype of auto, {', '.join(STORED)}, got {dtype!r}")
    return STORED[dtype]


def _most_common(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype of most numbers."""
    numbers: dict[str, int] = {}
    for spec in checkpoint.specs.values():
        numbers[spec.dtype] = numbers.get(spec.dtype, 0) + spec.numel
    return DTYPES[max(sorted(numbers), key=lambda name: numbers[name])]


def _identity(checkpoint: Checkpoint, patch: Patch, dtype: str, max_shard_bytes: int, source: str) -> dict[str, Any]:
    """Everything that the bytes of the shards depend on."""
    factors = {
        name: [digest_bytes(one.detach().cpu().float().numpy().tobytes()) for one in (change.up, change.down)]
        for name, change in patch.items()
    }
    return {
        "source": source,
        "files": digest_json(checkpoint.files),
        "change": digest_json(factors),
        "dtype": dtype,
        "max_shard_bytes": max_shard_bytes,
        "torch": torch.__version__,
    }


def _write(checkpoint: Checkpoint, patch: Patch, out: Path, shard: Shard) -> tuple[Terms, str]:
    """Write one shard; the terms of its matrices, and its digest."""
    blocks = [block for name, _, _ in shard.entries for block in _blocks(checkpoint, patch, name)]
    dtypes = {name: dtype for name, _, dtype in shard.entries}
    groups: list[list[Part]] = [[(checkpoint.root / block.shard, block.spec)] for block in blocks]
    terms = Terms()
    with read_ahead(groups, max_bytes=READ_AHEAD) as read, ShardWriter(out, shard) as writer:
        for block, (weight,) in zip(blocks, read, strict=True):
            name = block.tensor
            stored = writer.buffer(weight.shape, dtypes[name])
            if block.matrix is None:
                writer.write(name, stored.copy_(weight))
                continue
            change = patch[block.matrix]
            rows = LowRank(change.up[block.start : block.start + len(weight)], change.down)
            kept, whole = _add(weight, rows, stored)
            before = terms.get(block.matrix, (0.0, 0.0))
            terms[block.matrix] = (before[0] + kept, before[1] + whole)
            writer.write(name, stored)
    return terms, writer.digest


def _blocks(checkpoint: Checkpoint, patch: Patch, name: str) -> Iterator[Block]:
    """A stored tensor in blocks of rows, each of one matrix."""
    spec, shard = checkpoint.place(name)
    slices = [f"{name}.{i}" for i in range(spec.shape[0])] if len(spec.shape) == 3 else []
    if not any(one in patch for one in slices):
        matrix, start = name if name in patch else None, 0
        for part in blocks_of(spec, numbers=NUMBERS):
            yield Block(name, part, shard, matrix, start)
            start += part.shape[0] if part.shape else 0
        return
    for one in slices:
        start = 0
        for part in blocks_of(checkpoint.place(one)[0], numbers=NUMBERS):
            yield Block(name, part, shard, one if one in patch else None, start)
            start += part.shape[0]


def _add(weight: Tensor, change: LowRank, stored: Tensor) -> tuple[float, float]:
    """Fill ``stored`` (rows, in) with W + dW in its dtype, from rows of W and of its change.

    Returns:
        ``<S, dW>`` and ``|dW|^2`` with S = stored(W + dW) - stored(W): the two terms of the survival.
    """
    kept, exact = 0.0, weight.dtype == stored.dtype
    up, down = change.up.float(), change.down.float()
    for rows in row_blocks(weight.shape):
        total = weight[rows].to(torch.float32, copy=True).addmm_(up[rows], down)
        stored[rows] = total
        before = weight[rows] if exact else weight[rows].to(stored.dtype)
        kept += inner_product(total.copy_(stored[rows]).sub_(before), LowRank(up[rows], down))
    return kept, change.energy()


def _measured(terms: Terms, dtype: str) -> MergedCheckpoint:
    shares = {name: kept / whole if whole else 1.0 for name, (kept, whole) in sorted(terms.items())}
    total = sum(whole for _, whole in terms.values())
    least = min(shares, key=lambda name: shares[name]) if shares else None
    return MergedCheckpoint(
        dtype=dtype,
        survival=sum(kept for kept, _ in terms.values()) / total if total else 1.0,
        least_survival=shares[least] if least else 1.0,
        least_survival_matrix=least,
        matrices=shares,
    )


def _require_fit(checkpoint: Checkpoint, patch: Patch) -> None:
    for name, change in patch.items():
        if (shape := checkpoint.matrix_shape(name)) != change.shape:
            raise ShapeMismatch(f"expected a change of shape {shape} for {name}, got {change.shape}")


def _copy_rest(checkpoint: Checkpoint, out: Path, dtype: str | None) -> None:
    """Copy tokenizer and configs; the config's dtype is changed where the weights' was."""
    for name in checkpoint.files:
        if name not in (INDEX, "config.json") and not name.endswith(".safetensors"):
            shutil.copyfile(checkpoint.root / name, out / name)
    if dtype is None:
        shutil.copyfile(checkpoint.root / "config.json", out / "config.json")
        return
    config = {key: value for key, value in checkpoint.config.items() if key != "torch_dtype"} | {"dtype": dtype}
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
