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
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from safegene.checkpoints.checkpoint import Checkpoint
from safegene.checkpoints.header import TensorSpec
from safegene.checkpoints.read_ahead import Part, blocks_of, read_ahead
from safegene.checkpoints.structure import Structure
from safegene.models.device import default_device
from safegene.repair.delta import Coverage, Delta, ExtractedMatrix
from safegene.repair.finished_matrices import FinishedMatrices, MatrixDelta
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
from safegene.workspace.progress import log_progress

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


def delta_of_checkpoints(
    params: ExtractParams,
    base: Checkpoint,
    structure: Structure,
    others: Sequence[Checkpoint],
    finished: FinishedMatrices | None = None,
) -> Delta:
    """The delta of every matrix of ``structure``, and the energy of the difference in all other tensors.

    Args:
        params: ``max_rank``, ``power_iterations``, ``seed``.
        base: the aligned model.
        structure: of the family.
        others: the degraded models; of an embedding that grew, the rows that the family has are compared.
        finished: where finished matrices are kept, and those of a killed run are found.

    Raises:
        TensorMissing: a degraded model lacks a tensor of the family.
    """
    device = torch.device(default_device())
    names, rest = structure.names, _rest(base, structure)
    found = finished.read() if finished else {}
    todo = [name for name in names if name not in found]
    if found:
        log.info("delta: %d of %d matrices are those of a run that was stopped", len(found), len(names))
    plan = {name: list(_groups([_part(one, name) for one in (base, *others)])) for name in (*todo, *rest)}
    largest = max((torch.Size(base.matrix_shape(name)).numel() for name in todo), default=0)
    buffer = torch.empty(largest, dtype=torch.float32, device=device)
    elsewhere = dict[str, float]()
    with read_ahead([group for groups in plan.values() for group in groups], max_bytes=READ_AHEAD) as read:
        for at, name in enumerate(todo, start=len(names) - len(todo) + 1):
            shape = base.matrix_shape(name)
            mean = buffer[: torch.Size(shape).numel()].view(shape)
            sums = _difference(islice(read, len(plan[name])), mean)
            found[name] = _extract(params, name, mean, sums, others)
            if finished:
                finished.keep(name, found[name])
            log_progress(log, "delta, matrices", at, len(names))
        for name, kind in rest.items():
            total = _difference(islice(read, len(plan[name]))).total
            elsewhere[kind] = elsewhere.get(kind, 0.0) + total
    return _delta(structure, found, elsewhere)


def _delta(structure: Structure, found: Mapping[str, MatrixDelta], elsewhere: dict[str, float]) -> Delta:
    """All matrices in the order of the structure."""
    carried, missed = dict[str, float](), elsewhere
    for name in structure.names:
        energies, kind = carried if found[name].factors else missed, structure.matrices[name].kind
        energies[kind] = energies.get(kind, 0.0) + found[name].total
    return Delta(
        factors={name: factors for name in structure.names if (factors := found[name].factors)},
        matrices={name: matrix for name in structure.names if (matrix := found[name].matrix)},
        skipped={name: found[name].skipped for name in structure.names if not found[name].factors},
        coverage=Coverage(carried=carried, missed=missed),
    )


def _rest(base: Checkpoint, structure: Structure) -> Mapping[str, str]:
    """Other tensor of the model -> its kind, without those that are recomputed or are a tied copy."""
    return {name: kind for name, kind in structure.others.items() if kind != "buffer" and name in base.shapes}


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
            exact = own.float()
            torch.sub(exact, degraded[0].float(), out=mean)
            for one in degraded[1:]:
                mean += exact - one.float()
            if len(degraded) > 1:
                mean /= len(degraded)
            sums.total += energy(mean)
            if into is not None:
                sums.weight += energy(exact)
                sums.floor += sum(rounding_floor(one, one.dtype) for one in degraded) / len(degraded) ** 2
            start += len(own)
    return sums


def _extract(params: ExtractParams, name: str, mean: Tensor, sums: Sums, others: Sequence[Checkpoint]) -> MatrixDelta:
    """Factors of one mean difference (out, in), or why there are none."""
    if sums.total == 0.0:
        return MatrixDelta(0.0, UNCHANGED)
    iterations = params.power_iterations
    svd = randomised_svd(mean, params.max_rank, power_iterations=iterations, seed=params.seed, total=sums.total)
    signal = signal_share(sums.total, sums.floor) if sums.floor else 1.0
    if signal < MIN_SIGNAL:
        edge = rounding_edge([other.matrix(name).to(mean.device) for other in others], mean)
        if not (outstanding := float(svd.energies[svd.energies > edge].sum())):
            reason = f"the difference cannot be told from rounding to {_dtypes(others, name)}"
            log.warning("%s: %s", name, reason)
            return MatrixDelta(sums.total, reason)
        signal = max(signal, outstanding / sums.total)
    matrix = ExtractedMatrix(
        energies=tuple(float(value) for value in svd.energies),
        total=sums.total,
        error=svd.relative_error,
        relative_norm=(sums.total / sums.weight) ** 0.5 if sums.weight else 0.0,
        floor=sums.floor,
        signal=min(1.0, signal),
    )
    return MatrixDelta(sums.total, "", matrix, LowRank(svd.factors.up.cpu(), svd.factors.down.cpu()))


def _dtypes(others: Sequence[Checkpoint], name: str) -> str:
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    return " and ".join(sorted({names[other.place(name)[0].dtype] for other in others}))
