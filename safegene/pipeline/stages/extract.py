"""Stage ``extract``: the discrepancy between aligned and degraded models, per weight matrix, in low-rank form.

``delta`` takes ``W_aligned - W_degraded``: exactly, from the factors of the surrogates that ``degrade`` made, and by a
streamed randomised SVD from full checkpoints that the user names. Several are combined as their mean. ``distil`` goes
on from there and trains the factors, so that every surrogate with them predicts what the aligned model does on safety
prompts, and what the surrogate itself does on benign ones (SafeGene, arXiv 2606.06519).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safegene.checkpoints.checkpoint import Checkpoint, open_checkpoint, require_same_architecture
from safegene.checkpoints.record import read_record
from safegene.checkpoints.sources import CachedCheckpoint, local_checkpoint, redact
from safegene.checkpoints.sources import fetch as fetched
from safegene.checkpoints.vocabulary import vocabulary_digest
from safegene.datasets.prompts import PromptSet, read_prompts
from safegene.errors import CheckpointError, ParamsError, ShapeMismatch, StaleArtifact
from safegene.models.device import default_device, threads_for
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
from safegene.vectors.vector import read_surrogates, write_factors
from safegene.workspace.digest import canonical_json, digest_file
from safegene.workspace.manifest import Manifest, write_artefact
from safegene.workspace.params import ExtractParams, FetchParams

log = logging.getLogger(__name__)
LEAST_SIGNAL = 0.5  # below this share a measured difference is mostly rounding


@dataclass(frozen=True)
class ExtractedMatrix:
    """What is known about one matrix's delta.

    Attributes:
        energies: squared singular values kept, descending.
        total: energy of the whole delta (of the mean over the surrogates).
        error: relative Frobenius error of the factors, measured.
        relative_norm: ``|delta|_F / |W_aligned|_F``.
        floor: half the expected energy of rounding in the delta; 0 for fp32 factors.
        signal: share of the energy that is not rounding, 0..1.
    """

    energies: tuple[float, ...]
    total: float
    error: float
    relative_norm: float
    floor: float
    signal: float


@dataclass(frozen=True)
class Delta:
    """Factors of the safety direction with what was found about each, and why a matrix has none."""

    factors: dict[str, LowRank]
    found: dict[str, ExtractedMatrix]
    skipped: dict[str, str]


def extract(
    *,
    aligned: Path,
    degraded: Path,
    prompts: Path,
    out: Path,
    checkpoints: Sequence[str] = (),
    pins: Mapping[str, str] | None = None,
    params: ExtractParams | None = None,
    limits: FetchParams | None = None,
) -> Manifest:
    """Extract the delta from the surrogates that ``degrade`` made, or from the user's own ``checkpoints`` if named.

    ``pins`` holds each such checkpoint's fingerprint.

    Raises:
        ParamsError: ``distil`` with checkpoints of the user's.
        StaleArtifact: such a checkpoint has changed since it was pinned.
        ShapeMismatch, TensorMissing: it is of another architecture, or its vocabulary is not the family's.
        CheckpointError: no matrix holds a discrepancy that can be told from rounding.

    Example:
        >>> manifest = safegene.extract(
        ...     aligned=ws.aligned, degraded=ws.degraded, prompts=ws.prompts, out=ws.delta
        ... )
        >>> manifest.facts["matrices"]
        28
    """
    params = params or ExtractParams()
    if params.method == "distil" and checkpoints:
        raise ParamsError(
            "expected extract.method delta with family.degraded, got distil",
            remedy="distil trains on the surrogates that `degrade` makes: leave family.degraded empty",
        )
    family = local_checkpoint(aligned, limits)
    base = open_checkpoint(family.root)
    with threads_for(base.parameters):
        if checkpoints:
            others = {
                uri: _fetch_user_checkpoint(uri, (pins or {}).get(uri), base, limits or FetchParams())
                for uri in checkpoints
            }
            opened = {uri: open_checkpoint(one.root) for uri, one in others.items()}
            delta = delta_of_checkpoints(params, base, list(opened.values()))
            digests = {uri: one.digest for uri, one in others.items()}
        else:
            surrogates = read_surrogates(degraded)
            delta = delta_of_factors(params, base, list(surrogates.values()))
            digests = {name: digest_file(degraded / f"{name}.safetensors") for name in surrogates}
        if params.method == "distil":
            delta = distil_delta(params, base, delta, surrogates, read_prompts(prompts / "safety.jsonl"))
    if not delta.factors:
        first = next(iter(delta.skipped.items()), ("", "the checkpoint has no projection weights"))
        raise CheckpointError(
            f"expected a discrepancy in at least one matrix, got none of {len(delta.skipped)}: {' '.join(first)}",
            remedy="keep degraded models in float32, or degrade further",
        )
    inputs: dict[str, Path | str] = {"aligned": aligned, "safety.jsonl": prompts / "safety.jsonl"}
    if checkpoints:
        inputs |= digests
    else:
        inputs["degraded"] = degraded
    payload = {
        "method": params.method,
        "aligned": read_record(aligned).digest,
        "architecture": base.architecture,
        "degraded": digests,
    }
    return _write(out, params, delta, payload, inputs)


def _write(
    out: Path,
    params: ExtractParams,
    delta: Delta,
    payload: Mapping[str, Any],
    inputs: Mapping[str, Path | str],
) -> Manifest:
    with write_artefact(out, stage="extract", params=params.model_dump(mode="json"), inputs=inputs) as draft:
        write_factors(delta.factors, draft.path / "delta.safetensors")
        found = {name: asdict(one) for name, one in delta.found.items()}
        content = {**payload, "matrices": found, "skipped": delta.skipped}
        (draft.path / "delta.json").write_bytes(canonical_json(content) + b"\n")
        norms = [one.relative_norm for one in delta.found.values()]
        draft.facts.update(matrices=len(norms), skipped=len(delta.skipped), relative_norm=sum(norms) / len(norms))
    return draft.done


def _fetch_user_checkpoint(uri: str, pin: str | None, base: Checkpoint, limits: FetchParams) -> CachedCheckpoint:
    """A degraded checkpoint that the user brought: what was pinned, and of the family."""
    found = fetched(uri, limits=limits)
    where = redact(uri)
    if pin is not None and found.fingerprint != pin:
        raise StaleArtifact(
            f"expected {where} to hold {pin}, got {found.fingerprint}: it has changed since it was pinned",
            remedy="`safegene watch` pins what it holds now, and the vector is made again",
        )
    other = open_checkpoint(found.root)
    require_same_architecture((other.config, other.shapes), (base.config, base.shapes), where)
    words = [vocabulary_digest(root) for root in (base.root, found.root)]
    if words[1] not in (words[0], None):
        raise ShapeMismatch(f"expected the family's vocabulary {words[0]}, got {words[1]}, in {where}")
    return found


def delta_of_factors(params: ExtractParams, base: Checkpoint, surrogates: Sequence[Patch]) -> Delta:
    """The mean of ``W_aligned - W_degraded`` over surrogates kept as fp32 factors, truncated exactly."""
    factors, found, skipped = {}, {}, {}
    for name in base.matrices():
        changes = [one[name].scaled(-1.0 / len(surrogates)) for one in surrogates if name in one]
        if not changes or not any(change.energy() for change in changes):
            skipped[name] = "no surrogate changed it"
            continue
        whole = concat(changes)
        spectrum = product_svd(whole)[1].square()
        factors[name] = truncate(whole, params.max_rank)
        found[name] = _extract_matrix(base.tensor(name), spectrum, params.max_rank, float(spectrum.sum()), 0.0)
    return Delta(factors, found, skipped)


def _extract_matrix(
    weight: Tensor, spectrum: Tensor, rank: int, total: float, floor: float, error: float | None = None
) -> ExtractedMatrix:
    kept = [float(e) for e in spectrum[:rank]]
    lost = max(0.0, 1.0 - sum(kept) / total)
    return ExtractedMatrix(
        energies=tuple(kept),
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
    factors, found, skipped = {}, {}, {}
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
        if (signal := signal_share(total, floor)) < LEAST_SIGNAL:
            skipped[name] = f"{signal:.0%} of the difference is signal, the rest rounding to {_dtype(weight, stored)}"
            log.warning("%s: %s", name, skipped[name])
            continue
        found_here = randomised_svd(mean, params.max_rank, power_iterations=params.power_iterations, seed=params.seed)
        factors[name] = found_here.factors
        found[name] = _extract_matrix(
            weight, found_here.energies, params.max_rank, total, floor, found_here.relative_error
        )
        log.info("delta of %s (%d of %d): error %.1f%%", name, at + 1, len(names), 100 * found_here.relative_error)
    return Delta(factors, found, skipped)


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
    asked = safety.where(kind=("harmful", "wrapped"), split="fit")
    benign = safety.where(kind=("lookalike", "generic"), split="fit")
    tokens = params.response_tokens
    lessons = shots_from_teacher(
        model, tokenizer, evenly_spaced(asked, params.shots), kind="safety", response_tokens=tokens
    )
    students = {}
    for name, change in surrogates.items():
        with low_rank_hooks(model, change, dict.fromkeys(change, torch.ones(()))):
            own = shots_from_teacher(
                model, tokenizer, evenly_spaced(benign, params.shots), kind="benign", response_tokens=tokens
            )
        students[name] = Student(change, own)

    def on_step(step: int, loss: Tensor) -> None:
        log.info("distil: step %d of %d, loss %.3f", step, params.steps, float(loss))

    factors = distil(params, model, students, lessons, start=delta.factors, on_step=on_step)
    factors = {name: truncate(one, params.max_rank) for name, one in factors.items()}
    spectra = {name: product_svd(one)[1].square() for name, one in factors.items()}
    found = {
        name: _extract_matrix(base.tensor(name), spectrum, params.max_rank, float(spectrum.sum()), 0.0)
        for name, spectrum in spectra.items()
    }
    return Delta(factors, found, delta.skipped)
