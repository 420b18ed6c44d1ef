"""The safety-vector format, version 1. This docstring is its specification.

A safety vector says, per weight matrix l of one architecture, which low-rank change leads from degraded back to aligned
behaviour: ``up_l @ down_l ~ (W_aligned - W_degraded)_l`` (SafeGene, arXiv 2606.06519).

A vector is a folder.

 1. It MUST hold ``manifest.json`` (`safegene.workspace.manifest`, stage ``compress``), ``vector.safetensors`` and
    ``vector.json``, and MAY hold other files; the manifest MUST name every file with its sha256, and a reader MUST
    verify all of them.
 2. ``vector.json`` MUST be canonical JSON (sorted keys, no spaces, no NaN) and one newline, with exactly the keys
    ``schema`` (``"safegene/vector/v1"``), ``aligned``, ``degraded``, ``architecture``, ``dtype``, ``matrices``,
    ``skipped``.
 3. ``aligned`` and ``architecture`` MUST be digests (``sha256:<64 hex>``); ``degraded`` MUST be a list of at least one.
 4. ``matrices`` MUST map at least one full matrix name (it ends in ``.weight``) to exactly ``shape`` [out, in],
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
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from safegene.errors import FormatError
from safegene.vectors.linalg import LowRank, Patch
from safegene.workspace.digest import canonical_json, is_digest, strict_json
from safegene.workspace.manifest import read_manifest

SCHEMA = "safegene/vector/v1"
KEYS = {"schema", "aligned", "degraded", "architecture", "dtype", "matrices", "skipped"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TENSORS, HEADER = "vector.safetensors", "vector.json"


@dataclass(frozen=True)
class SafetyVector:
    """What a vector folder holds.

    Attributes:
        aligned: digest of the aligned checkpoint.
        degraded: digests of the degraded models that it was taken from.
        architecture: digest of (model type, names and shapes of all tensors); targets must share it.
        factors: matrix name -> up (out, r), down (r, in), float32.
        energy: matrix name -> share of the delta's energy kept, 0..1.
        skipped: matrix name -> why it has no factors.
        dtype: how the factors are stored.
    """

    aligned: str
    degraded: tuple[str, ...]
    architecture: str
    factors: Patch
    energy: Mapping[str, float]
    skipped: Mapping[str, str] = field(default_factory=dict)
    dtype: str = "float32"

    def numel(self) -> int:
        """Numbers stored."""
        return sum(one.numel() for one in self.factors.values())


def write_vector(vector: SafetyVector, folder: Path) -> None:
    """Write ``vector.safetensors`` and ``vector.json`` into a draft; its manifest is the stage's to write.

    Raises:
        FormatError: the vector breaks the specification; nothing is written.
    """
    header = {
        "schema": SCHEMA,
        "aligned": vector.aligned,
        "degraded": list(vector.degraded),
        "architecture": vector.architecture,
        "dtype": vector.dtype,
        "matrices": {
            name: {"shape": list(one.shape), "rank": one.rank, "energy": vector.energy.get(name)}
            for name, one in vector.factors.items()
        },
        "skipped": dict(vector.skipped),
    }
    check_header(header, where=HEADER)
    write_factors(vector.factors, folder / TENSORS, dtype=vector.dtype)
    (folder / HEADER).write_bytes(canonical_json(header) + b"\n")


def read_vector(folder: Path) -> SafetyVector:
    """Read a vector after verifying every byte against its manifest.

    Raises:
        ArtifactError: there is no finished artefact in ``folder``.
        DigestMismatch: a byte has changed, or a file is missing or unnamed.
        FormatError: the content breaks the specification.
    """
    manifest = read_manifest(folder, stage="compress")
    if missing := {TENSORS, HEADER} - set(manifest.files):
        raise FormatError(f"expected {TENSORS} and {HEADER} in the manifest, got no {sorted(missing)}, in {folder}")
    raw = (folder / HEADER).read_bytes()
    header = strict_json(raw, where=str(folder / HEADER))
    if canonical_json(header) + b"\n" != raw:
        raise FormatError(
            f"expected canonical JSON (sorted keys, no spaces, one newline), got other bytes, in {folder / HEADER}"
        )
    check_header(header, where=str(folder / HEADER))
    factors = read_factors(folder / TENSORS, dtype=header["dtype"])
    stated = {name: (tuple(m["shape"]), m["rank"]) for name, m in header["matrices"].items()}
    found = {name: (one.shape, one.rank) for name, one in factors.items()}
    if stated != found:
        wrong = sorted(n for n in stated.keys() | found.keys() if stated.get(n) != found.get(n))
        raise FormatError(
            f"expected the matrices, shapes and ranks of {HEADER}, got others for {wrong[:3]}, in {folder / TENSORS}"
        )
    return SafetyVector(
        aligned=header["aligned"],
        degraded=tuple(header["degraded"]),
        architecture=header["architecture"],
        factors=factors,
        energy={name: float(m["energy"]) for name, m in header["matrices"].items()},
        skipped=header["skipped"],
        dtype=header["dtype"],
    )


def check_header(header: Any, *, where: str) -> None:
    """Check rules 2 to 5 of the specification.

    Raises:
        FormatError: names the rule's subject, what stood there and ``where``.
    """

    def must(holds: bool, expected: str, got: object) -> None:
        if not holds:
            raise FormatError(f"expected {expected}, got {str(got)[:200]!r}, in {where}")

    must(isinstance(header, dict) and set(header) == KEYS, f"exactly the keys {sorted(KEYS)}", header)
    must(header["schema"] == SCHEMA, f"the schema {SCHEMA!r}", header["schema"])
    for key in ("aligned", "architecture"):
        must(is_digest(header[key]), f"{key} to be a digest", header[key])
    degraded = header["degraded"]
    must(isinstance(degraded, list) and bool(degraded), "degraded to be a list of at least one digest", degraded)
    must(all(is_digest(one) for one in degraded), "degraded to be digests", degraded)
    must(
        isinstance(header["dtype"], str) and header["dtype"] in DTYPES, f"a dtype of {sorted(DTYPES)}", header["dtype"]
    )
    matrices, skipped = header["matrices"], header["skipped"]
    must(isinstance(matrices, dict) and bool(matrices), "at least one matrix", matrices)
    must(isinstance(skipped, dict), "skipped to map names to reasons", skipped)
    must(not set(matrices) & set(skipped), "no matrix both kept and skipped", sorted(set(matrices) & set(skipped)))
    must(all(isinstance(r, str) and r.strip() for r in skipped.values()), "a reason for every skipped matrix", skipped)
    for name, one in matrices.items():
        must(name.endswith(".weight"), "matrix names that end in .weight", name)
        must(
            isinstance(one, dict) and set(one) == {"shape", "rank", "energy"}, f"shape, rank and energy of {name}", one
        )
        shape, rank, energy = one["shape"], one["rank"], one["energy"]
        must(isinstance(shape, list) and len(shape) == 2 and all(map(_count, shape)), f"[out, in] of {name}", shape)
        must(_count(rank) and rank <= min(shape), f"a rank in 1..{min(shape)} of {name}", rank)
        must(type(energy) in (int, float) and 0.0 <= energy <= 1.0, f"an energy in 0..1 of {name}", energy)


def _count(value: object) -> bool:
    return type(value) is int and value >= 1


def write_factors(patch: Patch, path: Path, *, dtype: str = "float32") -> None:
    """Write factors as ``<matrix>.up`` and ``<matrix>.down``; the degraded models and the delta use the same naming.

    Raises:
        FormatError: there are no factors, or a number is not finite in ``dtype``.
    """
    tensors: dict[str, Tensor] = {}
    for name, one in patch.items():
        for part, factor in (("up", one.up), ("down", one.down)):
            stored = factor.detach().to("cpu", DTYPES[dtype]).contiguous().clone()
            if not bool(torch.isfinite(stored).all()):
                raise FormatError(f"expected finite factors, got NaN or Infinity in {name}.{part}, for {path}")
            tensors[f"{name}.{part}"] = stored
    if not tensors:
        raise FormatError(f"expected factors of at least one matrix, got none, for {path}")
    save_file(tensors, path)


def read_factors(path: Path, *, dtype: str = "float32") -> dict[str, LowRank]:
    """Read factors, checking rules 6 and 7; the result is float32, in the order of the names.

    Raises:
        FormatError: the file is no safetensors, or holds anything but finite pairs of factors of ``dtype``.
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
    """The artefact of ``degrade``: surrogate name -> factors of ``W_degraded - W_aligned``, verified, by name.

    Raises:
        ArtifactError: there is no finished artefact.
        DigestMismatch: a byte has changed.
    """
    read_manifest(degraded, stage="degrade")
    records = strict_json((degraded / "degraded.json").read_bytes(), where=str(degraded / "degraded.json"))
    return {name: read_factors(degraded / f"{name}.safetensors") for name in sorted(records["surrogates"])}
