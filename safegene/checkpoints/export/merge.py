"""A merged checkpoint, ``W' = round(W + dW)``, streamed, and the share of each dW that is left after rounding.

Peak memory: one matrix in fp32, its change, and their sum. bf16 erases small changes (at ‖dW‖/‖W‖ = 0.0003 four fifths
of them), so a merge that keeps less than `MIN_SURVIVAL` is refused unless it is asked for.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from safegene.checkpoints.checkpoint import Checkpoint
from safegene.checkpoints.dtypes import dtype_named
from safegene.checkpoints.wanted import INDEX
from safegene.checkpoints.writer import ShardedWriter
from safegene.errors import CheckpointError, ShapeMismatch, TensorMissing
from safegene.vectors.linalg import LowRank, Patch, delta_survival, energy
from safegene.workspace.atomic import draft_folder

MIN_SURVIVAL = 0.9
SHARD_BYTES = 4 << 30


@dataclass(frozen=True)
class MergedCheckpoint:
    """How much of a change is left after rounding to the merged checkpoint's dtype.

    Attributes:
        dtype: how the tensors are stored.
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


def merge(
    checkpoint: Checkpoint,
    patch: Patch,
    *,
    out: Path,
    dtype: str = "float32",
    lossy: bool = False,
    max_shard_bytes: int = SHARD_BYTES,
) -> MergedCheckpoint:
    """Write the merged checkpoint atomically.

    Args:
        checkpoint: W, (out, in) per matrix.
        patch: matrix name -> change; summed with W in fp32.
        out: a new folder.
        dtype: how every tensor is stored: ``float32`` or ``bfloat16``.
        lossy: merge although rounding erases much of the change.
        max_shard_bytes: of one shard.

    Raises:
        CheckpointError: too little of the change would survive, or ``out`` exists.
        TensorMissing: the checkpoint has no such matrix.
        ShapeMismatch: a change has another shape than its matrix.
    """
    _require_fit(checkpoint, patch)
    if out.exists():
        raise CheckpointError(f"expected a new folder for the merged checkpoint, got {out}, which exists")
    with draft_folder(out) as draft:
        survival = _write(checkpoint, patch, draft, dtype_named(dtype), max_shard_bytes)
        merged = _measured(survival, dtype)
        if merged.survival < MIN_SURVIVAL and not lossy:
            raise CheckpointError(
                f"expected {MIN_SURVIVAL:.0%} of the repair to survive in {dtype}, got {merged.survival:.0%} "
                f"(least: {merged.least_survival:.0%} of {merged.least_survival_matrix}), for {out}",
                remedy="ship the adapter unmerged (`safegene export`), merge in float32, or insist with --lossy",
            )
        _copy_rest(checkpoint, draft, dtype)
    return merged


def _write(
    checkpoint: Checkpoint, patch: Patch, out: Path, dtype: torch.dtype, most: int
) -> dict[str, tuple[float, float]]:
    """Write the weights; matrix name -> (survival, energy of its change)."""
    survival = {}
    plan = [(name, spec.shape) for name, spec in checkpoint.specs.items()]
    with ShardedWriter(out, plan, dtype=dtype, max_shard_bytes=most) as writer:
        for name, _ in plan:
            weight = checkpoint.tensor(name)
            if name in patch:
                weight, delta = weight.float(), _dense(patch[name])
                survival[name] = (delta_survival(weight, delta, dtype), energy(delta))
                weight += delta
            writer.write(name, weight)
    return survival


def _measured(survival: Mapping[str, tuple[float, float]], dtype: str) -> MergedCheckpoint:
    total = sum(weight for _, weight in survival.values())
    survival_in_all = sum(share * weight for share, weight in survival.values()) / total if total else 1.0
    least = min(survival, key=lambda name: survival[name][0]) if survival else None
    return MergedCheckpoint(
        dtype=dtype,
        survival=survival_in_all,
        least_survival=survival[least][0] if least else 1.0,
        least_survival_matrix=least,
        matrices={name: share for name, (share, _) in sorted(survival.items())},
    )


def _dense(change: LowRank) -> Tensor:
    return change.up.float() @ change.down.float()


def _require_fit(checkpoint: Checkpoint, patch: Patch) -> None:
    for name, change in patch.items():
        if name not in checkpoint.specs:
            raise TensorMissing(f"expected the matrix {name}, got none of that name, in {checkpoint.root}")
        if (shape := checkpoint.specs[name].shape) != change.shape:
            raise ShapeMismatch(f"expected a change of shape {shape} for {name}, got {change.shape}")


def _copy_rest(checkpoint: Checkpoint, out: Path, dtype: str) -> None:
    """Copy tokenizer and configs; only the dtype changes."""
    for name in checkpoint.files:
        if name not in (INDEX, "config.json") and not name.endswith(".safetensors"):
            shutil.copyfile(checkpoint.root / name, out / name)
    config = {key: value for key, value in checkpoint.config.items() if key != "torch_dtype"} | {"dtype": dtype}
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
