"""The delta: the difference ``W_aligned - W_degraded`` per weight matrix, in low-rank form, and ``delta.json``.

From surrogates kept as float32 factors it is exact. From full checkpoints it is a streamed randomised SVD. Several
degraded models are combined as their mean. `distil_delta` trains the factors further.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from safegene.checkpoints.checkpoint import Checkpoint
from safegene.datasets.prompts import PromptSet
from safegene.models.device import default_device
from safegene.models.loading import load_model, load_tokenizer
from safegene.models.patching import low_rank_hooks
from safegene.repair.distillation import Student, distil
from safegene.repair.shots import evenly_spaced, shots_from_teacher
from safegene.vectors.linalg import (
    LowRank,
    Patch,
    concat,
    energy,
    product_svd,
    randomised_svd,
    rounding_floor,
    signal_share,
    truncate,
)
from safegene.workspace.digest import canonical_json
from safegene.workspace.manifest import read_manifest
from safegene.workspace.params import ExtractParams
from safegene.workspace.parsing import Strict, parse_json

log = logging.getLogger(__name__)
NAME = "delta.json"
MIN_SIGNAL = 0.5  # below this share a measured difference is mostly rounding


class ExtractedMatrix(Strict):
    """What is known about one matrix's delta.

    Attributes:
        energies: squared singular values kept, descending.
        total: energy of the whole delta (of the mean over the degraded models).
        error: relative Frobenius error of the factors, measured.
        relative_norm: ``|delta|_F / |W_aligned|_F``.
        floor: half the expected energy of rounding in the delta; 0 for float32 factors.
        signal: share (0..1) of the energy that is not rounding.
    """

    energies: tuple[float, ...]
    total: float
    error: float
    relative_norm: float
    floor: float
    signal: float


@dataclass(frozen=True)
class Delta:
    """Factors of the delta.

    Attributes:
        factors: matrix name -> up (out, r), down (r, in).
        matrices: matrix name -> what is known about it.
        skipped: name of a matrix without factors -> why.
    """

    factors: dict[str, LowRank]
    matrices: dict[str, ExtractedMatrix]
    skipped: dict[str, str]


class DeltaFile(Strict):
    """The content of ``delta.json``, beside the factors in ``delta.safetensors``.

    Attributes:
        method: `delta` or `distil`, as in ``extract.method``.
        aligned: digest of the aligned model.
        architecture: digest of the family's architecture.
        degraded: surrogate name or checkpoint URI -> digest.
        matrices: matrix name -> what is known about its delta.
        skipped: name of a matrix without factors -> why.
    """

    method: Literal["delta", "distil"]
    aligned: str
    architecture: str
    degraded: dict[str, str]
    matrices: dict[str, ExtractedMatrix]
    skipped: dict[str, str]

    @property
    def content(self) -> bytes:
        """The bytes of the file: canonical JSON and a newline."""
        return canonical_json(self.model_dump(mode="json")) + b"\n"


def read_delta(folder: Path) -> DeltaFile:
    """``delta.json`` of an ``extract`` artefact, after verifying every file of the artefact.

    Raises:
        ArtifactError: the artefact is incomplete.
        DigestMismatch: a file has changed.
        FormatError: the file is malformed.
    """
    read_manifest(folder, stage="extract")
    path = folder / NAME
    return parse_json(DeltaFile, path.read_bytes(), where=str(path))


def delta_of_factors(params: ExtractParams, base: Checkpoint, surrogates: Sequence[Patch]) -> Delta:
    """The mean of ``W_aligned - W_degraded`` over surrogates kept as float32 factors, truncated exactly.

    Args:
        params: ``max_rank``.
        base: the aligned model.
        surrogates: factors of ``W_degraded - W_aligned`` of each, by matrix name.
    """
    factors, matrices, skipped = dict[str, LowRank](), dict[str, ExtractedMatrix](), dict[str, str]()
    for name in base.matrices():
        changes = [patch[name].scaled(-1.0 / len(surrogates)) for patch in surrogates if name in patch]
        if not changes or not any(change.energy() for change in changes):
            skipped[name] = "no surrogate changed it"
            continue
        whole = concat(changes)
        spectrum = product_svd(whole)[1].square()
        factors[name] = truncate(whole, params.max_rank)
        matrices[name] = _describe(base.tensor(name), spectrum, params.max_rank, float(spectrum.sum()), 0.0)
    return Delta(factors, matrices, skipped)


def _describe(
    weight: Tensor, spectrum: Tensor, rank: int, total: float, floor: float, error: float | None = None
) -> ExtractedMatrix:
    """Measures of one delta, from W (out, in), its (k,) squared singular values, and energies of delta and rounding."""
    energies = tuple(float(value) for value in spectrum[:rank])
    lost = max(0.0, 1.0 - sum(energies) / total)
    return ExtractedMatrix(
        energies=energies,
        total=total,
        error=lost**0.5 if error is None else error,
        relative_norm=(total / energy(weight)) ** 0.5,
        floor=floor,
        signal=signal_share(total, floor) if floor else 1.0,
    )


def delta_of_checkpoints(params: ExtractParams, base: Checkpoint, others: Sequence[Checkpoint]) -> Delta:
    """The mean of ``W_aligned - W_degraded`` over full checkpoints, one matrix at a time.

    Peak memory is three matrices in float64. A matrix whose difference is mostly the rounding of its stored dtypes is
    skipped with that reason: a low-rank fit of rounding noise is no safety direction.
    """
    factors, matrices, skipped = dict[str, LowRank](), dict[str, ExtractedMatrix](), dict[str, str]()
    names = base.matrices()
    for at, name in enumerate(names):
        weight = base.tensor(name)
        stored = [other.tensor(name) for other in others]
        mean = sum((weight.float() - one.float()) for one in stored) / len(stored)
        assert isinstance(mean, Tensor)
        floor = _floor(weight, stored)
        total = energy(mean)
        if total == 0.0:
            skipped[name] = "no degraded checkpoint differs from the aligned one"
            continue
        if (signal := signal_share(total, floor)) < MIN_SIGNAL:
            skipped[name] = f"{signal:.0%} of the difference is signal, the rest rounding to {_dtype(weight, stored)}"
            log.warning("%s: %s", name, skipped[name])
            continue
        svd = randomised_svd(mean, params.max_rank, power_iterations=params.power_iterations, seed=params.seed)
        factors[name] = svd.factors
        matrices[name] = _describe(weight, svd.energies, params.max_rank, total, floor, svd.relative_error)
        log.info("delta of %s (%d of %d): error %.1f%%", name, at + 1, len(names), 100 * svd.relative_error)
    return Delta(factors, matrices, skipped)


def _floor(weight: Tensor, stored: Sequence[Tensor]) -> float:
    """Half the expected energy of rounding in the mean difference, so that `signal_share` doubles it back.

    The aligned weight's rounding is common to all differences; the others' are independent and average out.
    """
    own = rounding_floor(weight, weight.dtype)
    return (own + sum(rounding_floor(one, one.dtype) for one in stored) / len(stored) ** 2) / 2.0


def _dtype(weight: Tensor, stored: Sequence[Tensor]) -> str:
    return " and ".join(sorted({str(one.dtype).removeprefix("torch.") for one in (weight, *stored)}))


def distil_delta(
    params: ExtractParams, base: Checkpoint, delta: Delta, surrogates: Mapping[str, Patch], safety: PromptSet
) -> Delta:
    """Train the delta's factors further on every surrogate, from the fit split; see `safegene.repair.distillation`.

    Raises:
        EmptySample: the fit split lacks harmful or benign prompts.
    """
    model, tokenizer = load_model(base.root, device=default_device()), load_tokenizer(base.root)
    harmful = evenly_spaced(safety.where(kind=("harmful", "wrapped"), split="fit"), params.shots)
    benign = evenly_spaced(safety.where(kind=("lookalike", "generic"), split="fit"), params.shots)
    tokens, whole_change = params.response_tokens, torch.ones(())
    lessons = shots_from_teacher(model, tokenizer, harmful, kind="safety", response_tokens=tokens)
    students = {}
    for name, change in surrogates.items():
        with low_rank_hooks(model, change, dict.fromkeys(change, whole_change)):
            shots = shots_from_teacher(model, tokenizer, benign, kind="benign", response_tokens=tokens)
        students[name] = Student(change, shots)

    def on_step(step: int, loss: Tensor) -> None:
        log.info("distil: step %d of %d, loss %.3f", step, params.steps, float(loss))

    trained = distil(params, model, students, lessons, start=delta.factors, on_step=on_step)
    factors = {name: truncate(change, params.max_rank) for name, change in trained.items()}
    spectra = {name: product_svd(change)[1].square() for name, change in factors.items()}
    matrices = {
        name: _describe(base.tensor(name), spectrum, params.max_rank, float(spectrum.sum()), 0.0)
        for name, spectrum in spectra.items()
    }
    return Delta(factors, matrices, delta.skipped)
