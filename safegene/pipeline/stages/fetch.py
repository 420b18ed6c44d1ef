"""Stage ``fetch`` (the aligned model) and ``fetch-target``: which checkpoint, verified, and that it fits the family."""

from pathlib import Path
from typing import Any

from safegene.checkpoints import sources
from safegene.checkpoints.adapter import open_adapter
from safegene.checkpoints.checkpoint import open_checkpoint, require_same_architecture, shaping
from safegene.checkpoints.record import RECORD, CheckpointRecord, read_record
from safegene.checkpoints.sources import CachedCheckpoint, redact
from safegene.checkpoints.structure import NAME as STRUCTURE
from safegene.checkpoints.structure import Structure
from safegene.checkpoints.vocabulary import vocabulary_digest
from safegene.errors import CheckpointError, ShapeMismatch, StaleArtifact, TensorMissing
from safegene.workspace.manifest import Manifest, write_artefact
from safegene.workspace.params import FetchParams


def fetch(
    source: str,
    *,
    out: Path,
    family: Path | None = None,
    fingerprint: str | None = None,
    params: FetchParams | None = None,
) -> Manifest:
    """Copy a checkpoint into the cache, verify it, and say which it is in ``checkpoint.json``.

    Args:
        source: URI of the checkpoint: ``hf://``, ``s3://``, ``file://`` or ``tiny://``.
        out: folder of the artefact to write.
        family: for a target, the artefact of the family's aligned model; None for the aligned model itself.
        fingerprint: what the source must still hold; None takes what it holds now.
        params: limits; by default the section's.

    Raises:
        StaleArtifact: the source holds something else than was pinned.
        ShapeMismatch: the target is of another architecture, or its adapter does not fit.
        CheckpointError: the checkpoint breaks a rule of `safegene.checkpoints`, or the family is no full checkpoint.
        SourceError: it cannot be had.

    Example:
        >>> manifest = safegene.fetch("tiny://aligned?seed=0", out=ws.aligned)
        >>> manifest.facts["parameters"]
        881920
        >>> manifest = safegene.fetch(
        ...     "tiny://sentiment?seed=0", out=ws.checkpoint("sentiment"), family=ws.aligned
        ... )
        >>> manifest.facts["kind"]
        'full'
    """
    params = params or FetchParams()
    _require_pinned(sources.fingerprint(source), fingerprint, source)
    local = sources.fetch(source, limits=params)
    _require_pinned(local.fingerprint, fingerprint, source)
    base = read_record(family) if family else None
    record = CheckpointRecord(
        source=source,
        fingerprint=local.fingerprint,
        kind=local.kind,
        digest=local.digest,
        files=dict(local.files),
        vocabulary=vocabulary_digest(local.root),
        **(_full(local, source) if local.kind == "full" else _lora(local, base, source)),
    )
    if base and family:
        _require_family(record, base, source)
    inputs: dict[str, Path | str] = {"source": local.digest} | ({"aligned": family} if family else {})
    with write_artefact(out, stage="fetch", params=params.model_dump(mode="json"), inputs=inputs) as draft:
        (draft.path / RECORD).write_bytes(record.content)
        if base is None:
            (draft.path / STRUCTURE).write_bytes(_structure(local, source).content)
        draft.facts |= record.model_dump(include={"kind", "digest", "parameters", "adapter_parameters"})
        draft.facts["bytes"] = sum((local.root / name).stat().st_size for name in local.files)
    return draft.done


def _require_pinned(got: str, pinned: str | None, source: str) -> None:
    if pinned is not None and got != pinned:
        raise StaleArtifact(
            f"expected {redact(source)} to hold {pinned}, got {got}: it has changed since it was named",
            remedy="`safegene watch` (or `safegene target add` again) pins what it holds now, and re-aligns it",
        )


def _full(local: CachedCheckpoint, source: str) -> dict[str, Any]:
    checkpoint = open_checkpoint(local.root)
    return {
        "architecture": checkpoint.architecture,
        "config": shaping(checkpoint.config),
        "tensors": checkpoint.shapes,
        "parameters": checkpoint.parameters,
        "adapter_parameters": 0,
        "base": None,
    }


def _structure(local: CachedCheckpoint, source: str) -> Structure:
    """Where the family's matrices are. Targets have the same, as they are of the same architecture."""
    from safegene.models.structure import analyse  # torch and transformers, which a target does not need

    structure = analyse(open_checkpoint(local.root))
    if not structure.layers:
        raise CheckpointError(f"expected weights of linear layers in the language model, got none, in {redact(source)}")
    return structure


def _lora(local: CachedCheckpoint, base: CheckpointRecord | None, source: str) -> dict[str, Any]:
    if base is None:
        raise CheckpointError(
            f"expected a full checkpoint as the family's aligned model, got a LoRA adapter, in {redact(source)}",
            remedy="merge the adapter into its base, and name the merged checkpoint in family.aligned",
        )
    adapter = open_adapter(local.root)
    for name, (out, _, inner) in adapter.shapes.items():
        if name not in base.tensors:
            raise TensorMissing(f"expected adapted matrices that the family has, got {name}, in {redact(source)}")
        if base.tensors[name] != (out, inner):
            expected = list(base.tensors[name])
            raise ShapeMismatch(f"expected a change of shape {expected} for {name}, got {[out, inner]}, in {source}")
    return {
        "architecture": base.architecture,
        "config": base.config,
        "tensors": adapter.shapes,
        "parameters": base.parameters,
        "adapter_parameters": adapter.parameters,
        "base": base.digest,
    }


def _require_family(record: CheckpointRecord, base: CheckpointRecord, source: str) -> None:
    """Before any arithmetic: same architecture (a LoRA takes its base's), and words with the same numbers."""
    if record.kind == "full":
        require_same_architecture((record.config, record.tensors), (base.config, base.tensors), redact(source))
    if record.vocabulary == base.vocabulary or (record.kind == "lora" and record.vocabulary is None):
        return
    got = "none" if record.vocabulary is None else record.vocabulary
    raise ShapeMismatch(
        f"expected the family's vocabulary {base.vocabulary}, got {got}, in {redact(source)}",
        remedy="save the family's tokenizer beside the target: tokenizer.save_pretrained(folder)",
    )
