"""The delta: the difference ``W_aligned - W_degraded`` per weight matrix, in low-rank form, and ``delta.json``.

From surrogates kept as float32 factors it is exact; from full checkpoints see `safegene.repair.checkpoint_delta`.
Several degraded models are combined as their mean. `distil_delta` trains the factors further.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from safegene.checkpoints.checkpoint import Checkpoint
from safegene.checkpoints.structure import Structure
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
    truncate,
)
from safegene.workspace.digest import canonical_json
from safegene.workspace.manifest import read_manifest
from safegene.workspace.params import ExtractParams
from safegene.workspace.parsing import Strict, parse_json
from safegene.workspace.progress import log_progress

log = logging.getLogger(__name__)
NAME = "delta.json"


class ExtractedMatrix(Strict):
    """What is known about one matrix's delta.

    Attributes:
        energies: squared singular values kept, descending.
        total: energy of the whole delta (of the mean over the degraded models).
        error: relative Frobenius error of the factors, measured.
        relative_norm: ``|delta|_F / |W_aligned|_F``.
        floor: expected energy of the degraded weights' rounding in the delta; 0 for float32 factors. Files of earlier
            versions hold half of both sides' rounding.
        signal: share (0..1) of the energy that rounding does not explain.
    """

    energies: tuple[float, ...]
    total: float
    error: float
    relative_norm: float
    floor: float
    signal: float


class Coverage(Strict):
    """Where the energy of the whole difference between the models lies, by kind of tensor.

    Attributes:
        carried: kind -> energy in matrices that have factors.
        missed: kind -> energy elsewhere: in matrices without factors, and in tensors that hold no matrix.
    """

    OPTIONAL_KEYS: ClassVar[frozenset[str]] = frozenset()

    carried: dict[str, float]
    missed: dict[str, float]

    @property
    def share(self) -> float:
        """The share (0..1) of the energy in matrices that have factors; 0 where nothing differs."""
        carried, missed = sum(self.carried.values()), sum(self.missed.values())
        return carried / (carried + missed) if carried else 0.0


@dataclass(frozen=True)
class Delta:
    """Factors of the delta.

    Attributes:
        factors: matrix name -> up (out, r), down (r, in).
        matrices: matrix name -> what is known about it.
        skipped: name of a matrix without factors -> why.
        coverage: how much of the difference the factors can carry.
    """

    factors: dict[str, LowRank]
    matrices: dict[str, ExtractedMatrix]
    skipped: dict[str, str]
    coverage: Coverage


class DeltaFile(Strict):
    """The content of ``delta.json``, beside the factors in ``delta.safetensors``.

    Attributes:
        method: `delta` or `distil`, as in ``extract.method``.
        aligned: digest of the aligned model.
        architecture: digest of the family's architecture.
        degraded: surrogate name or checkpoint URI -> digest.
        matrices: matrix name -> what is known about its delta.
        skipped: name of a matrix without factors -> why.
        coverage: how much of the difference the factors can carry; None in files of earlier versions.
    """

    OPTIONAL_KEYS: ClassVar[frozenset[str]] = frozenset({"coverage"})

    method: Literal["delta", "distil"]
    aligned: str
    architecture: str
    degraded: dict[str, str]
    matrices: dict[str, ExtractedMatrix]
    skipped: dict[str, str]
    coverage: Coverage | None = None

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


def delta_of_factors(
    params: ExtractParams, base: Checkpoint, structure: Structure, surrogates: Sequence[Patch]
) -> Delta:
    """The mean of ``W_aligned - W_degraded`` over surrogates kept as float32 factors, truncated exactly.

    Args:
        params: ``max_rank``.
        base: the aligned model.
        structure: of the family.
        surrogates: factors of ``W_degraded - W_aligned`` of each, by matrix name; they differ nowhere else.
    """
    factors, matrices, skipped = dict[str, LowRank](), dict[str, ExtractedMatrix](), dict[str, str]()
    carried: dict[str, float] = {}
    for name in structure.names:
        changes = [patch[name].scaled(-1.0 / len(surrogates)) for patch in surrogates if name in patch]
        if not changes or not any(change.energy() for change in changes):
            skipped[name] = "no surrogate changed it"
            continue
        whole, kind = concat(changes), structure.matrices[name].kind
        spectrum = product_svd(whole)[1].square()
        factors[name] = truncate(whole, params.max_rank)
        matrices[name] = _describe(base.matrix(name), spectrum, params.max_rank, float(spectrum.sum()))
        carried[kind] = carried.get(kind, 0.0) + matrices[name].total
    return Delta(factors, matrices, skipped, Coverage(carried=carried, missed={}))


def _describe(weight: Tensor, spectrum: Tensor, rank: int, total: float) -> ExtractedMatrix:
    """Measures of one exact delta, from W (out, in), its (k,) squared singular values, and their sum."""
    energies = tuple(float(value) for value in spectrum[:rank])
    return ExtractedMatrix(
        energies=energies,
        total=total,
        error=max(0.0, 1.0 - sum(energies) / total) ** 0.5,
        relative_norm=(total / energy(weight)) ** 0.5,
        floor=0.0,
        signal=1.0,
    )


def distil_delta(
    params: ExtractParams,
    base: Checkpoint,
    delta: Delta,
    surrogates: Mapping[str, Patch],
    safety: PromptSet,
    dtype: str,
) -> Delta:
    """Train the delta's factors further on every surrogate, from the fit split; see `safegene.repair.distillation`.

    Raises:
        EmptySample: the fit split lacks harmful or benign prompts.
    """
    model, tokenizer = load_model(base.root, dtype=dtype, device=default_device()), load_tokenizer(base.root)
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
        log_progress(log, "distillation, steps", step, params.steps, f"loss {float(loss):.3f}")

    trained = distil(params, model, students, lessons, start=delta.factors, on_step=on_step)
    factors = {name: truncate(change, params.max_rank) for name, change in trained.items()}
    spectra = {name: product_svd(change)[1].square() for name, change in factors.items()}
    matrices = {
        name: _describe(base.matrix(name), spectrum, params.max_rank, float(spectrum.sum()))
        for name, spectrum in spectra.items()
    }
    return Delta(factors, matrices, delta.skipped, delta.coverage)
