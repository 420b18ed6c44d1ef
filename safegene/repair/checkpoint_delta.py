"""The delta between full checkpoints, streamed: the mean of ``W_aligned - W_degraded``, one matrix at a time.

Blocks of rows are read ahead by a thread, so peak memory is one matrix in float32, its sketch, and `READ_AHEAD` bytes,
whatever the size of the checkpoints.

*What counts as rounding.* The aligned weights are what they are. A degraded checkpoint may have lost part of its change
when it was stored in its dtype, so a difference may be mostly the rounding error of the degraded weights: of an fp32
model and its own bf16 copy it is nothing else, and a low-rank fit of noise is no safety direction. A difference is kept
if its energy is at least twice what rounding is expected to give, or if it has a direction that noise of such energies
per row and column does not have: see `safegene.vectors.linalg.rounding_edge`.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from safegene.checkpoints.checkpoint import Checkpoint
from safegene.checkpoints.header import TensorSpec
from safegene.checkpoints.read_ahead import Part, blocks_of, read_ahead
from safegene.checkpoints.structure import Structure
from safegene.models.device import default_device
from safegene.repair.delta import Coverage, Delta, ExtractedMatrix
from safegene.vectors.linalg import (
    LowRank,
    energy,
    randomised_svd,
    rounding_edge,
    rounding_floor,
    row_blocks,
    signal_share,
)
from safegene.workspace.params import ExtractParams

log = logging.getLogger(__name__)
READ_AHEAD = 128 << 20  # bytes
NUMBERS = 1 << 22  # of one tensor that are read at once
MIN_SIGNAL = 0.5  # of a difference's energy; with less it must have a direction that noise does not have
UNCHANGED = "no degraded checkpoint differs from the aligned one"


@dataclass
class Sums:
    """What is summed over the blocks of one tensor.

    Attributes:
        weight: energy of W_aligned.
        total: energy of the mean difference.
        floor: expected energy of the degraded weights' rounding in the mean difference.
    """

    weight: float = 0.0
    total: float = 0.0
    floor: float = 0.0


@dataclass
class Extraction:
    """The state of one extraction: what is found of each matrix, and the energies by kind of tensor."""

    factors: dict[str, LowRank] = field(default_factory=dict)
    matrices: dict[str, ExtractedMatrix] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    carried: dict[str, float] = field(default_factory=dict)
    missed: dict[str, float] = field(default_factory=dict)

    def delta(self) -> Delta:
        """What was found."""
        coverage = Coverage(carried=self.carried, missed=self.missed)
        return Delta(self.factors, self.matrices, self.skipped, coverage)


def delta_of_checkpoints(
    params: ExtractParams, base: Checkpoint, structure: Structure, others: Sequence[Checkpoint]
) -> Delta:
    """The delta of every matrix of ``structure``, and the energy of the difference in all other tensors.

    Args:
        params: ``max_rank``, ``power_iterations``, ``seed``.
        base: the aligned model.
        structure: of the family.
        others: the degraded models; of an embedding that grew, the rows that the family has are compared.

    Raises:
        TensorMissing: a degraded model lacks a tensor of the family.
    """
    found, device = Extraction(), torch.device(default_device())
    names, rest = structure.names, _rest(base, structure)
    plan = {name: list(_groups([_part(one, name) for one in (base, *others)])) for name in (*names, *rest)}
    largest = max((torch.Size(structure.matrices[name].shape).numel() for name in names), default=0)
    buffer = torch.empty(largest, dtype=torch.float32, device=device)
    with read_ahead([group for groups in plan.values() for group in groups], max_bytes=READ_AHEAD) as read:
        for at, name in enumerate(names, start=1):
            shape = base.matrix_shape(name)
            mean = buffer[: torch.Size(shape).numel()].view(shape)
            sums = _difference(islice(read, len(plan[name])), mean)
            _extract(params, found, name, mean, sums, others)
            _add(found, structure.matrices[name].kind, sums.total, carried=name in found.factors)
            log.info("delta: %d of %d matrices, %s", at, len(names), name)
        for name, kind in rest.items():
            _add(found, kind, _difference(islice(read, len(plan[name]))).total, carried=False)
    return found.delta()


def _rest(base: Checkpoint, structure: Structure) -> Mapping[str, str]:
    """Other tensor of the model -> its kind, without those that are recomputed or are a tied copy."""
    return {name: kind for name, kind in structure.others.items() if kind != "buffer" and name in base.shapes}


def _add(found: Extraction, kind: str, total: float, *, carried: bool) -> None:
    energies = found.carried if carried else found.missed
    energies[kind] = energies.get(kind, 0.0) + total


def _part(checkpoint: Checkpoint, name: str) -> Part:
    spec, shard = checkpoint.place(name)
    return checkpoint.root / shard, spec


def _groups(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Equal blocks of rows of each file's tensor; rows that one of them lacks are left out."""
    first = parts[0][1]
    if not first.shape:
        yield list(parts)
        return
    rows = min(spec.shape[0] for _, spec in parts)
    cut = [(path, _first_rows(spec, rows)) for path, spec in parts]
    for blocks in zip(*(blocks_of(spec, numbers=NUMBERS) for _, spec in cut), strict=True):
        yield [(path, block) for (path, _), block in zip(cut, blocks, strict=True)]


def _first_rows(spec: TensorSpec, rows: int) -> TensorSpec:
    size = (spec.end - spec.start) // max(1, spec.shape[0])
    return TensorSpec(spec.name, spec.dtype, (rows, *spec.shape[1:]), spec.start, spec.start + rows * size)


def _difference(blocks: Iterable[list[Tensor]], into: Tensor | None = None) -> Sums:
    """`Sums` over a tensor's blocks of rows; the mean difference is written to ``into`` (rows, columns)."""
    sums, start = Sums(), 0
    device = "cpu" if into is None else into.device
    for block in blocks:
        weight, *stored = (one if one.ndim else one[None] for one in block)
        for rows in row_blocks(weight.shape):
            own, *degraded = (one[rows].to(device) for one in (weight, *stored))
            mean = torch.empty(own.shape, device=device) if into is None else into[start : start + len(own)]
            torch.sub(own.float(), degraded[0].float(), out=mean)
            for one in degraded[1:]:
                mean += own.float() - one.float()
            if len(degraded) > 1:
                mean /= len(degraded)
            sums.total += energy(mean)
            if into is not None:
                sums.weight += energy(own)
                sums.floor += sum(rounding_floor(one, one.dtype) for one in degraded) / len(degraded) ** 2
            start += len(own)
    return sums


def _extract(
    params: ExtractParams, found: Extraction, name: str, mean: Tensor, sums: Sums, others: Sequence[Checkpoint]
) -> None:
    """Factors of one mean difference, or why there are none."""
    if sums.total == 0.0:
        found.skipped[name] = UNCHANGED
        return
    svd = randomised_svd(
        mean, params.max_rank, power_iterations=params.power_iterations, seed=params.seed, total=sums.total
    )
    signal = signal_share(sums.total, sums.floor) if sums.floor else 1.0
    if signal < MIN_SIGNAL:
        edge = rounding_edge([other.matrix(name).to(mean.device) for other in others], mean)
        if not (outstanding := float(svd.energies[svd.energies > edge].sum())):
            found.skipped[name] = (
                f"{signal:.0%} of the difference is signal, the rest rounding to {_dtypes(others, name)}"
            )
            log.warning("%s: %s", name, found.skipped[name])
            return
        signal = max(signal, outstanding / sums.total)
    found.factors[name] = LowRank(svd.factors.up.cpu(), svd.factors.down.cpu())
    found.matrices[name] = ExtractedMatrix(
        energies=tuple(float(value) for value in svd.energies),
        total=sums.total,
        error=svd.relative_error,
        relative_norm=(sums.total / sums.weight) ** 0.5 if sums.weight else 0.0,
        floor=sums.floor,
        signal=min(1.0, signal),
    )


def _dtypes(others: Sequence[Checkpoint], name: str) -> str:
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    return " and ".join(sorted({names[other.place(name)[0].dtype] for other in others}))
