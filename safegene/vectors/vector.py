"""The safety-vector format, version 1. This docstring is its specification.

A safety vector holds, for each weight matrix l of one architecture, the low-rank change from degraded to aligned
behaviour: ``up_l @ down_l ~ (W_aligned - W_degraded)_l`` (SafeGene, arXiv 2606.06519).

A vector is a folder.

 1. It MUST hold ``manifest.json`` (`safegene.workspace.manifest`, stage ``compress``), ``vector.safetensors`` and
    ``vector.json``, and MAY hold other files; the manifest MUST name every file with its sha256, and a reader MUST
    verify all of them.
 2. ``vector.json`` MUST be canonical JSON (sorted keys, no spaces, no NaN) and one newline, with exactly the keys
    ``schema`` (``"safegene/vector/v1"``), ``aligned``, ``degraded``, ``architecture``, ``dtype``, ``matrices``,
    ``skipped``.
 3. ``aligned`` and ``architecture`` MUST be digests (``sha256:<64 hex>``); ``degraded`` MUST be a list of at least one.
 4. ``matrices`` MUST map at least one full matrix name (that of a stored tensor with two dimensions, or
    ``<tensor>.<i>`` for slice i of one with three) to exactly ``shape`` [out, in],
    ``rank`` (1 .. min(out, in)) and ``energy`` (share of the delta's energy that the factors keep, 0..1).
 5. ``skipped`` MUST map each matrix of the family that has no factors to a reason that is not empty. No name MAY stand
    in both.
 6. ``vector.safetensors`` MUST hold exactly the tensors ``<matrix>.up`` (out, rank) and ``<matrix>.down`` (rank, in)
    for every matrix in ``matrices``, all of the stated ``dtype`` (``float32`` or ``bfloat16``), and no metadata.
 7. Every number MUST be finite.
 8. A reader MUST refuse anything else, and MUST NOT repair it. It MAY widen the factors to float32.

Same content, same bytes: neither file holds a clock, a path or a machine's name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, StringConstraints, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from safegene.errors import FormatError
from safegene.vectors.linalg import LowRank, Patch
from safegene.workspace.digest import canonical_json, strict_json
from safegene.workspace.fields import Digest, Positive, Share
from safegene.workspace.manifest import read_manifest
from safegene.workspace.parsing import Strict, parse

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TENSORS, HEADER = "vector.safetensors", "vector.json"
MatrixName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,255}$")]
Reason = Annotated[str, StringConstraints(pattern=r"\S")]


class MatrixEntry(Strict):
    """The entry of one matrix in ``vector.json``; rule 4."""

    shape: tuple[Positive, Positive]
    rank: Positive
    energy: Share

    @model_validator(mode="after")
    def _rank_fits(self) -> "MatrixEntry":
        if self.rank > min(self.shape):
            raise ValueError(f"expected a rank of at most {min(self.shape)}, got {self.rank}")
        return self


class VectorHeader(Strict):
    """``vector.json``; rules 2 to 5 of the specification."""

    OPTIONAL_KEYS: ClassVar[frozenset[str]] = frozenset()

    schema_: Literal["safegene/vector/v1"] = Field("safegene/vector/v1", alias="schema")
    aligned: Digest
    degraded: Annotated[tuple[Digest, ...], Field(min_length=1)]
    architecture: Digest
    dtype: Literal["float32", "bfloat16"]
    matrices: Annotated[dict[MatrixName, MatrixEntry], Field(min_length=1)]
    skipped: dict[str, Reason]

    @model_validator(mode="after")
    def _kept_or_skipped(self) -> "VectorHeader":
        if both := sorted(self.matrices.keys() & self.skipped.keys()):
            raise ValueError(f"expected each matrix in matrices or in skipped, got {both[:3]} in both")
        return self


@dataclass(frozen=True)
class SafetyVector:
    """A safety vector.

    Attributes:
        aligned: digest of the aligned checkpoint.
        degraded: digests of the degraded models that the vector was extracted from.
        architecture: `Checkpoint.architecture` of the family; a target must have the same.
        factors: matrix name -> up (out, r), down (r, in), float32.
        energy: matrix name -> share of the delta's energy that the factors keep, 0..1.
        skipped: matrix name -> the reason why it has no factors.
        dtype: of the stored factors.
    """

    aligned: str
    degraded: tuple[str, ...]
    architecture: str
    factors: Patch
    energy: Mapping[str, float]
    skipped: Mapping[str, str] = field(default_factory=dict)
    dtype: str = "float32"

    def numel(self) -> int:
        """The number of stored values."""
        return sum(change.numel() for change in self.factors.values())


def write_vector(vector: SafetyVector, folder: Path) -> None:
    """Write ``vector.safetensors`` and ``vector.json`` into the draft of an artefact.

    Raises:
        FormatError: the vector breaks the specification; nothing is written.
    """
    header = parse(
        VectorHeader,
        {
            "schema": "safegene/vector/v1",
            "aligned": vector.aligned,
            "degraded": vector.degraded,
            "architecture": vector.architecture,
            "dtype": vector.dtype,
            "matrices": {
                name: {"shape": change.shape, "rank": change.rank, "energy": vector.energy.get(name)}
                for name, change in vector.factors.items()
            },
            "skipped": dict(vector.skipped),
        },
        where=HEADER,
    )
    write_factors(vector.factors, folder / TENSORS, dtype=vector.dtype)
    (folder / HEADER).write_bytes(canonical_json(header.model_dump(by_alias=True)) + b"\n")


def read_vector(folder: Path) -> SafetyVector:
    """Read a vector; every file is verified against the manifest.

    Raises:
        ArtifactError: there is no complete artefact in ``folder``.
        DigestMismatch: a file has changed, is missing, or is not named in the manifest.
        FormatError: the content breaks the specification.
    """
    manifest = read_manifest(folder, stage="compress")
    if missing := {TENSORS, HEADER} - set(manifest.files):
        raise FormatError(f"expected {TENSORS} and {HEADER} in the manifest, got no {sorted(missing)}, in {folder}")
    header = read_vector_header(folder / HEADER)
    factors = read_factors(folder / TENSORS, dtype=header.dtype)
    stated = {name: (entry.shape, entry.rank) for name, entry in header.matrices.items()}
    stored = {name: (change.shape, change.rank) for name, change in factors.items()}
    if stated != stored:
        wrong = sorted(name for name in stated.keys() | stored.keys() if stated.get(name) != stored.get(name))
        raise FormatError(
            f"expected the matrices, shapes and ranks of {HEADER}, got others for {wrong[:3]}, in {folder / TENSORS}"
        )
    return SafetyVector(
        aligned=header.aligned,
        degraded=header.degraded,
        architecture=header.architecture,
        factors=factors,
        energy={name: entry.energy for name, entry in header.matrices.items()},
        skipped=header.skipped,
        dtype=header.dtype,
    )


def read_vector_header(path: Path) -> VectorHeader:
    """``vector.json``, checked against rules 2 to 5.

    Raises:
        FormatError: the content breaks the specification.
    """
    data, where = path.read_bytes(), str(path)
    content = strict_json(data, where=where)
    if canonical_json(content) + b"\n" != data:
        raise FormatError(f"expected canonical JSON (sorted keys, no spaces, one newline), got other bytes, in {where}")
    return parse(VectorHeader, content, where=where)


def write_factors(patch: Patch, path: Path, *, dtype: str = "float32") -> None:
    """Write factors as the tensors ``<matrix>.up`` and ``<matrix>.down``; deltas and surrogates use this form too.

    Raises:
        FormatError: there are no factors, or a number is not finite in ``dtype``.
    """
    tensors: dict[str, Tensor] = {}
    for name, change in patch.items():
        for part, factor in (("up", change.up), ("down", change.down)):
            stored = factor.detach().to("cpu", DTYPES[dtype]).contiguous().clone()
            if not bool(torch.isfinite(stored).all()):
                raise FormatError(f"expected finite factors, got NaN or Infinity in {name}.{part}, for {path}")
            tensors[f"{name}.{part}"] = stored
    if not tensors:
        raise FormatError(f"expected factors of at least one matrix, got none, for {path}")
    save_file(tensors, path)


def read_factors(path: Path, *, dtype: str = "float32") -> dict[str, LowRank]:
    """Read factors and check rules 6 and 7; the result is in float32, in the order of the names.

    Raises:
        FormatError: the file is not safetensors, or holds anything else than finite pairs of factors of ``dtype``.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except (SafetensorError, OSError) as error:
        raise FormatError(f"expected a safetensors file, got {error}, in {path}") from error
    if metadata:
        raise FormatError(f"expected no metadata, got {sorted(metadata)}, in {path}")
    for key, tensor in tensors.items():
        if tensor.dtype != DTYPES[dtype]:
            raise FormatError(f"expected {dtype}, got {tensor.dtype} of {key}, in {path}")
        if not bool(torch.isfinite(tensor).all()):
            raise FormatError(f"expected finite numbers, got NaN or Infinity in {key}, in {path}")
    return _pairs(tensors, path)


def _pairs(tensors: Mapping[str, Tensor], path: Path) -> dict[str, LowRank]:
    names = sorted({key.rpartition(".")[0] for key in tensors})
    expected = {f"{name}.{part}" for name in names for part in ("up", "down")}
    if not names or expected != set(tensors):
        odd = sorted(expected ^ set(tensors))[:3]
        raise FormatError(
            f"expected an .up and a .down for every matrix and nothing else, got {odd or 'none'}, in {path}"
        )
    factors = {}
    for name in names:
        up, down = tensors[f"{name}.up"].float(), tensors[f"{name}.down"].float()
        if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0] or not up.shape[1]:
            shapes = f"{tuple(up.shape)} and {tuple(down.shape)}"
            raise FormatError(f"expected factors (out, r) and (r, in), got {shapes} of {name}, in {path}")
        factors[name] = LowRank(up, down)
    return factors


def read_surrogates(degraded: Path) -> dict[str, dict[str, LowRank]]:
    """The artefact of ``degrade``: surrogate name -> factors of ``W_degraded - W_aligned``, in the order of the names.

    Raises:
        ArtifactError: there is no complete artefact.
        DigestMismatch: a file has changed, is missing, or is not named in the manifest.
    """
    manifest = read_manifest(degraded, stage="degrade")
    names = sorted(file.removesuffix(".safetensors") for file in manifest.files if file.endswith(".safetensors"))
    return {name: read_factors(degraded / f"{name}.safetensors") for name in names}
