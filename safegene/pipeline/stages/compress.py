"""Stage ``compress``: how much of the delta the safety vector keeps.

The delta's factors carry one singular value per column (`vectors.linalg`), so compressing is choosing how many columns
each matrix keeps: a rank, or the fewest that hold a share of the energy, then fewer still until a byte budget holds.
"""

import heapq
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from safegene.errors import ParamsError
from safegene.repair.delta import read_delta
from safegene.vectors.linalg import LowRank, Patch, product_svd, truncate
from safegene.vectors.vector import SafetyVector, read_factors, write_vector
from safegene.workspace.manifest import Manifest, write_artefact
from safegene.workspace.params import CompressParams

BYTES_PER_NUMBER = {"float32": 4, "bfloat16": 2}
DIGITS = 9


@dataclass(frozen=True)
class KeptMatrix:
    """What one matrix keeps.

    Attributes:
        rank: columns kept; 0 where the byte budget left nothing.
        energy: share of the delta's energy kept, 0..1.
        size: bytes stored.
    """

    rank: int
    energy: float
    size: int


def compress(*, delta: Path, out: Path, params: CompressParams | None = None) -> Manifest:
    """Make the safety vector from the extracted delta.

    Raises:
        ParamsError: the byte budget leaves no matrix a single column.
        DigestMismatch: a byte of the delta has changed.

    Example:
        >>> manifest = safegene.compress(delta=ws.delta, out=ws.vector)
        >>> manifest.facts["energy"] > 0.99
        True
    """
    params = params or CompressParams()
    extracted = read_delta(delta)
    factors = read_factors(delta / "delta.safetensors")
    spectra = {name: product_svd(one)[1].square() for name, one in factors.items()}
    totals = {name: extracted.matrices[name].total for name in factors}
    kept = choose_ranks(params, factors, spectra, totals)
    skipped = extracted.skipped | {
        name: "no column fits compress.max_mebibytes" for name, matrix in kept.items() if not matrix.rank
    }
    patch = {name: truncate(one, kept[name].rank) for name, one in factors.items() if kept[name].rank}
    vector = SafetyVector(
        aligned=extracted.aligned,
        degraded=tuple(extracted.degraded[name] for name in sorted(extracted.degraded)),
        architecture=extracted.architecture,
        factors=patch,
        energy={name: kept[name].energy for name in patch},
        skipped=skipped,
        dtype=params.dtype,
    )
    with write_artefact(out, stage="compress", params=params.model_dump(mode="json"), inputs={"delta": delta}) as draft:
        write_vector(vector, draft.path)
        (draft.path / "energies.csv").write_text(spectrum_table(kept), encoding="utf-8")
        stored = sum(one.size for one in kept.values())
        draft.facts.update(matrices=len(patch), numbers=vector.numel(), bytes=stored, energy=_overall(kept, totals))
    return draft.done


def choose_ranks(
    params: CompressParams, factors: Patch, spectra: Mapping[str, Tensor], totals: Mapping[str, float]
) -> dict[str, KeptMatrix]:
    """How many columns each matrix keeps.

    The byte budget takes columns away one at a time, each time the one with the least energy per byte.

    Args:
        params: the criterion.
        factors: up (out, r), down (r, in) of each matrix.
        spectra: (k,) squared singular values of each, descending.
        totals: energy of the whole delta of each, of which the factors may hold only a part.

    Raises:
        ParamsError: nothing fits the budget.
    """
    chosen = {name: min(_wanted(params, spectra[name], totals[name]), _rank(one)) for name, one in factors.items()}
    column = {name: sum(one.shape) * BYTES_PER_NUMBER[params.dtype] for name, one in factors.items()}
    limit = None if params.max_mebibytes is None else params.max_mebibytes * 2**20
    size = sum(chosen[name] * column[name] for name in factors)
    heap = [(float(spectra[n][r - 1]) / column[n], n) for n, r in chosen.items() if r]
    heapq.heapify(heap)
    while limit is not None and size > limit and heap:
        _, name = heapq.heappop(heap)
        chosen[name] -= 1
        size -= column[name]
        if chosen[name]:
            heapq.heappush(heap, (float(spectra[name][chosen[name] - 1]) / column[name], name))
    if not any(chosen.values()):
        raise ParamsError(
            f"expected compress.max_mebibytes to hold at least one column, got {params.max_mebibytes}",
            remedy=f"the smallest column takes {min(column.values())} bytes",
        )
    return {name: KeptMatrix(r, _share(spectra[name], r, totals[name]), r * column[name]) for name, r in chosen.items()}


def _rank(factors: LowRank) -> int:
    return min(factors.rank, *factors.shape)


def _wanted(params: CompressParams, spectrum: Tensor, total: float) -> int:
    if params.rank is not None:
        return params.rank
    assert params.energy is not None  # CompressParams holds exactly one of the two
    for rank in range(1, len(spectrum) + 1):
        if _share(spectrum, rank, total) >= params.energy:
            return rank
    return len(spectrum)


def _share(spectrum: Tensor, rank: int, total: float) -> float:
    """The share of the energy in the first columns; more digits than `DIGITS` depend on the number of threads."""
    return 1.0 if total == 0.0 else min(1.0, round(float(spectrum[:rank].sum()) / total, DIGITS))


def _overall(kept: Mapping[str, KeptMatrix], totals: Mapping[str, float]) -> float:
    whole = sum(totals.values())
    return 1.0 if whole == 0.0 else round(sum(kept[name].energy * totals[name] for name in kept) / whole, DIGITS)


def spectrum_table(kept: Mapping[str, KeptMatrix]) -> str:
    """``energies.csv``: matrix, rank, share of energy kept, bytes."""
    text = io.StringIO()
    text.write("matrix,rank,energy,bytes\n")
    for name, one in kept.items():
        text.write(f"{name},{one.rank},{one.energy:.6f},{one.size}\n")
    return text.getvalue()
