"""Stage ``extract``: the delta between the aligned and the degraded models, per weight matrix, in low-rank form.

``delta`` takes ``W_aligned - W_degraded``: exactly, from the factors of the surrogates that ``degrade`` made, and by a
streamed randomised SVD from full checkpoints that the user names. Several are combined as their mean. ``distil``
trains these factors further, so that every surrogate with them predicts what the aligned model does on safety prompts,
and what the surrogate itself does on benign ones (SafeGene, arXiv 2606.06519). See `safegene.repair.delta`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from safegene.checkpoints import sources
from safegene.checkpoints.checkpoint import Checkpoint, open_checkpoint
from safegene.checkpoints.dtypes import resolve_dtype
from safegene.checkpoints.record import read_record
from safegene.checkpoints.sources import CachedCheckpoint, local_checkpoint
from safegene.checkpoints.structure import Structure, read_structure
from safegene.checkpoints.vocabulary import vocabulary_digest
from safegene.datasets.prompts import read_prompts
from safegene.errors import CheckpointError, ParamsError, ShapeMismatch, StaleArtifact
from safegene.models.device import default_device, threads_for
from safegene.repair.checkpoint_delta import delta_of_checkpoints
from safegene.repair.delta import Coverage, Delta, DeltaFile, delta_of_factors, distil_delta
from safegene.repair.finished_matrices import FinishedMatrices
from safegene.text import redact
from safegene.vectors.vector import read_surrogates, write_factors
from safegene.workspace.digest import digest_bytes, digest_file
from safegene.workspace.manifest import Draft, Manifest, write_artefact
from safegene.workspace.params import ExtractParams, FetchParams


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
    dtype: str = "auto",
) -> Manifest:
    """Extract the delta from the surrogates that ``degrade`` made, or from the user's own ``checkpoints`` if named.

    ``pins`` holds each such checkpoint's fingerprint. ``dtype`` is that of the model that ``distil`` trains beside;
    ``auto`` is as stored.

    Raises:
        ParamsError: ``distil`` with ``checkpoints``.
        StaleArtifact: such a checkpoint has changed since it was pinned.
        ShapeMismatch, TensorMissing: it is of another architecture, or its vocabulary is not the family's.
        CheckpointError: no matrix holds a delta that can be told from rounding, or less than ``min_coverage`` of the
            difference lies in matrices that have factors.

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
    base, structure = open_checkpoint(local_checkpoint(aligned, limits).root), read_structure(aligned)
    dtype = resolve_dtype(dtype, base.specs.values())
    inputs: dict[str, Path | str] = {"aligned": aligned, "safety.jsonl": prompts / "safety.jsonl"}
    finished: FinishedMatrices | None = None
    with threads_for(base.parameters):
        if checkpoints:
            fetched = [_fetch_user_checkpoint(uri, (pins or {}).get(uri), base, limits) for uri in checkpoints]
            digests = {uri: local.digest for uri, local in zip(checkpoints, fetched, strict=True)}
            inputs |= digests
            finished = _finished(read_record(aligned).digest, structure, list(digests.values()), params)
            others = [open_checkpoint(local.root) for local in fetched]
            delta = delta_of_checkpoints(params, base, structure, others, finished)
        else:
            delta, digests = _of_surrogates(params, base, structure, degraded, prompts / "safety.jsonl", dtype)
            inputs["degraded"] = degraded
    _require_signal(delta)
    _require_coverage(params, delta.coverage)
    chosen = params.model_dump(mode="json") | {"dtype": dtype}
    with write_artefact(out, stage="extract", params=chosen, inputs=inputs) as draft:
        _write(
            draft,
            delta,
            DeltaFile(
                method=params.method,
                aligned=read_record(aligned).digest,
                architecture=read_record(aligned).architecture,
                degraded=digests,
                matrices=delta.matrices,
                skipped=delta.skipped,
                coverage=delta.coverage,
            ),
        )
    if finished:
        finished.remove()
    return draft.done


def _write(draft: Draft, delta: Delta, content: DeltaFile) -> None:
    """The files of the artefact, and its facts."""
    write_factors(delta.factors, draft.path / "delta.safetensors")
    (draft.path / "delta.json").write_bytes(content.content)
    norms = [matrix.relative_norm for matrix in delta.matrices.values()]
    draft.facts.update(
        matrices=len(norms),
        skipped=len(delta.skipped),
        relative_norm=sum(norms) / len(norms),
        coverage=delta.coverage.share,
        missed=delta.coverage.missed,
    )


def _finished(aligned: str, structure: Structure, degraded: Sequence[str], params: ExtractParams) -> FinishedMatrices:
    """The matrices that a killed run of the same extraction finished."""
    return FinishedMatrices(
        {
            "aligned": aligned,
            "structure": digest_bytes(structure.content),
            "degraded": list(degraded),
            "params": params.model_dump(mode="json", include={"max_rank", "power_iterations", "seed"}),
            "device": default_device().partition(":")[0],
        }
    )


def _of_surrogates(
    params: ExtractParams, base: Checkpoint, structure: Structure, degraded: Path, safety: Path, dtype: str
) -> tuple[Delta, dict[str, str]]:
    """The delta from the surrogates' factors, distilled where asked, and surrogate -> digest of its factors."""
    surrogates = read_surrogates(degraded)
    delta = delta_of_factors(params, base, structure, list(surrogates.values()))
    if params.method == "distil":
        delta = distil_delta(params, base, delta, surrogates, read_prompts(safety), dtype)
    return delta, {name: digest_file(degraded / f"{name}.safetensors") for name in surrogates}


def _require_signal(delta: Delta) -> None:
    if not delta.factors:
        first = next(iter(delta.skipped.items()), ("", "the checkpoint has no matrices"))
        raise CheckpointError(
            f"expected a delta in at least one matrix, got none of {len(delta.skipped)}: {' '.join(first)}",
            remedy="save degraded models in float32, or degrade further: rounding hides smaller changes",
        )


def _require_coverage(params: ExtractParams, coverage: Coverage) -> None:
    if not coverage.share >= params.min_coverage:  # also where it is not a number
        whole = sum(coverage.carried.values()) + sum(coverage.missed.values())
        missed = sorted(coverage.missed.items(), key=lambda item: -item[1])
        raise CheckpointError(
            f"expected at least {params.min_coverage:.0%} of the difference between the models in matrices that the "
            f"vector can carry, got {coverage.share:.1%}; elsewhere: "
            + ", ".join(f"{kind} {energy / whole:.1%}" for kind, energy in missed if energy),
            remedy="degrade by changing the layers' matrices only (a LoRA, or embeddings and norms frozen), or lower "
            "extract.min_coverage in params.yaml if a repair of that share is enough",
        )


def _fetch_user_checkpoint(uri: str, pin: str | None, base: Checkpoint, limits: FetchParams | None) -> CachedCheckpoint:
    """A degraded checkpoint that the user named: it must hold what was pinned, and be of the family."""
    local = sources.fetch(uri, limits=limits or FetchParams())
    where = redact(uri)
    if pin is not None and local.fingerprint != pin:
        raise StaleArtifact(
            f"expected {where} to hold {pin}, got {local.fingerprint}: it has changed since it was pinned",
            remedy="`safegene watch` pins what it holds now, and the vector is made again",
        )
    from safegene.models.family import architecture, require_same_architecture  # transformers: seconds

    family = architecture(base, "the family's aligned model")
    require_same_architecture(architecture(open_checkpoint(local.root), where), (family.values, family.tensors), where)
    expected, got = vocabulary_digest(base.root), vocabulary_digest(local.root)
    if got not in (expected, None):
        raise ShapeMismatch(
            f"expected the family's vocabulary {expected}, got {got}, in {where}",
            remedy="save the family's tokenizer beside the checkpoint, or remove its tokenizer",
        )
    return local
