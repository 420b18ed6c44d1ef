"""Stage ``fetch`` (the aligned model) and ``fetch-target``: which checkpoint, verified, and that it fits the family."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safegene.checkpoints import sources
from safegene.checkpoints.adapter import open_adapter
from safegene.checkpoints.chat_template import chat_files, template_digest
from safegene.checkpoints.checkpoint import Checkpoint, open_checkpoint
from safegene.checkpoints.record import RECORD, CheckpointRecord, read_record
from safegene.checkpoints.sources import CachedCheckpoint
from safegene.checkpoints.sources.uri import as_uri
from safegene.checkpoints.structure import NAME as STRUCTURE
from safegene.checkpoints.structure import Structure, read_structure
from safegene.checkpoints.vocabulary import Vocabulary, added_tokens, read_vocabulary
from safegene.errors import CheckpointError, SafegeneError, ShapeMismatch, StaleArtifact
from safegene.text import redact, visible
from safegene.workspace.credentials import without_credentials
from safegene.workspace.manifest import Manifest, read_manifest, write_artefact
from safegene.workspace.params import FetchParams

SHOWN = 8  # added tokens that the log names
log = logging.getLogger(__name__)


def fetch(
    source: str,
    *,
    out: Path,
    family: Path | None = None,
    fingerprint: str | None = None,
    params: FetchParams | None = None,
    entry: Mapping[str, str] | None = None,
) -> Manifest:
    """Copy a checkpoint into the cache, verify it, and say which it is in ``checkpoint.json``.

    Args:
        source: of the checkpoint: ``hf://``, ``s3://``, ``file://`` or ``tiny://``, a path, or ``ORG/MODEL``.
        out: folder of the artefact to write.
        family: for a target, the artefact of the family's aligned model; None for the aligned model itself.
        fingerprint: what the source must still hold; None takes what it holds now.
        params: limits; by default the section's.
        entry: of a target, ``name`` and ``task`` of its entry in ``data/targets.yaml``, which the artefact is then
            bound to (`safegene.ledger.evidence.require_entry`).

    Raises:
        StaleArtifact: the source holds something else than was pinned.
        ShapeMismatch: the target is of another architecture or vocabulary, or its adapter does not fit.
        CheckpointError: the checkpoint breaks a rule of `safegene.checkpoints`, it has no chat template, or the family
            is no full checkpoint.
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
    params, source = params or FetchParams(), as_uri(source)
    _require_pinned(sources.fingerprint(source), fingerprint, source)
    local = sources.fetch(source, limits=params)
    _require_pinned(local.fingerprint, fingerprint, source)
    base = Family(family, read_record(family), params) if family else None
    vocabulary, structure = read_vocabulary(local.root), None
    if base is not None:
        _ = base.root  # fetched, where it must be, before the credentials are gone
    with without_credentials(), _naming(local.root, redact(source)):
        if local.kind == "full":
            described, structure = _full(local, base, vocabulary, redact(source))
        else:
            described = _lora(local, base, vocabulary, redact(source))
        chat = _chat_facts(local, base, vocabulary, redact(source), structure)
        if base is not None:
            chat["added_tokens"] = list(described["added_tokens"])
    record = CheckpointRecord(
        source=source,
        fingerprint=local.fingerprint,
        kind=local.kind,
        digest=local.digest,
        files=dict(local.files),
        vocabulary=vocabulary.digest if vocabulary else None,
        **described,
    )
    inputs: dict[str, Path | str] = {"source": local.digest} | ({"aligned": family} if family else {})
    read = params.model_dump(mode="json") | ({"entry": dict(entry)} if entry else {})
    with write_artefact(out, stage="fetch", params=read, inputs=inputs) as draft:
        (draft.path / RECORD).write_bytes(record.content)
        if structure is not None:
            (draft.path / STRUCTURE).write_bytes(structure.content)
        draft.facts |= record.model_dump(include={"kind", "digest", "parameters", "adapter_parameters"})
        draft.facts |= chat
        draft.facts["bytes"] = sum((local.root / name).stat().st_size for name in local.files)
    return draft.done


@dataclass(frozen=True)
class Family:
    """The family's aligned model.

    Attributes:
        artefact: of the stage ``fetch``.
        record: its record.
        limits: on a checkpoint that must be fetched again.
    """

    artefact: Path
    record: CheckpointRecord
    limits: FetchParams

    @cached_property
    def root(self) -> Path:
        """The folder of its files, fetched again where they are not in the cache."""
        return sources.local_checkpoint(self.artefact, self.limits).root

    @cached_property
    def expected(self) -> tuple[Mapping[str, Any], Mapping[str, tuple[int, ...]]]:
        """The values and the tensors that a target must have; an earlier version recorded others."""
        from safegene.models.family import architecture

        if "is_encoder_decoder" in self.record.config:
            return self.record.config, self.record.tensors
        found = architecture(open_checkpoint(self.root), redact(self.record.source))
        return found.values, found.tensors


def _chat_facts(
    local: CachedCheckpoint, base: Family | None, vocabulary: Vocabulary | None, where: str, structure: Structure | None
) -> dict[str, Any]:
    """Which chat template the model is asked with; for a target, whether it is the family's, and what it declares."""
    from safegene.models.chat_identity import require_same_chat, require_template  # torch and transformers: seconds

    if base is None:
        facts: dict[str, Any] = {"chat_template_digest": template_digest(local.root)}
        if vocabulary is not None:
            require_template(chat_files(local.root), where)
        return facts
    recorded = read_manifest(base.artefact).facts.get("chat_template_digest")  # not by earlier versions
    others = str(recorded or template_digest(base.root))
    own = template_digest(local.root, base=others if local.kind == "lora" else None)
    declared: tuple[str, ...] = ()
    if vocabulary is not None or own != others:
        chat = chat_files(local.root) if structure else chat_files(base.root, (local.root,))
        require_template(chat, where, own=own != others)
        rows = vocabulary_rows(open_checkpoint(chat.root), structure or read_structure(base.artefact))
        declared = require_same_chat(chat, base.root, where, rows=rows)
    for one in declared:
        log.info("%s: declared: %s", where, one)
    template = "family's" if own == others else "own"
    return {"chat_template_digest": own, "chat_template": template, "declared": list(declared)}


@contextmanager
def _naming(folder: Path, where: str) -> Iterator[None]:
    """Name the source in place of its folder in the cache."""
    try:
        yield
    except SafegeneError as error:
        raise type(error)(error.message.replace(str(folder), where), remedy=error.remedy) from None


def _require_pinned(got: str, pinned: str | None, source: str) -> None:
    if pinned is not None and got != pinned:
        raise StaleArtifact(
            f"expected {redact(source)} to hold {pinned}, got {got}: it has changed since it was named",
            remedy="`safegene watch` (or `safegene target add` again) pins what it holds now, and re-aligns it",
        )


def _full(
    local: CachedCheckpoint, family: Family | None, vocabulary: Vocabulary | None, where: str
) -> tuple[dict[str, Any], Structure]:
    """Fields of the record of a full checkpoint, and where its matrices are; a target must fit the family."""
    from safegene.models.family import architecture, require_same_architecture  # torch and transformers: seconds

    found = architecture(open_checkpoint(local.root), where)
    if not found.structure.layers:
        raise CheckpointError(f"expected weights of linear layers in the language model, got none, in {where}")
    if family:
        rows = vocabulary.rows if vocabulary and vocabulary.ids else None
        require_same_architecture(found, family.expected, where, rows=rows)
    return {
        "architecture": family.record.architecture if family else found.digest,
        "config": dict(found.values),
        "tensors": dict(found.tensors),
        "parameters": sum(map(math.prod, found.tensors.values())),
        "adapter_parameters": 0,
        "base": None,
        "added_tokens": _added_tokens(family, vocabulary, where),
    }, found.structure


def _lora(local: CachedCheckpoint, family: Family | None, vocabulary: Vocabulary | None, where: str) -> dict[str, Any]:
    """Fields of the record of an adapter, which must fit the family."""
    if family is None:
        raise CheckpointError(
            f"expected a full checkpoint as the family's aligned model, got a LoRA adapter, in {where}",
            remedy="merge the adapter into its base, and name the merged checkpoint in family.aligned",
        )
    from safegene.models.adapter_fit import adapted_matrices  # torch and transformers: seconds

    adapter, base = open_adapter(local.root), family.record
    matrices = adapted_matrices(adapter, open_checkpoint(family.root), where)
    added = _added_tokens(family, vocabulary, where) if vocabulary else ()
    if added and vocabulary:
        rows = vocabulary_rows(open_checkpoint(family.root), read_structure(family.artefact))
        if vocabulary.rows > rows:
            raise ShapeMismatch(
                f"expected tokens for the {rows} rows of the family's embedding, got {vocabulary.rows}, in {where}",
                remedy="merge the adapter into its base where it was trained, and name the merged checkpoint instead",
            )
    return {
        "architecture": base.architecture,
        "config": base.config,
        "tensors": matrices,
        "parameters": base.parameters,
        "adapter_parameters": adapter.parameters,
        "base": base.digest,
        "added_tokens": added,
    }


def vocabulary_rows(checkpoint: Checkpoint, structure: Structure) -> int:
    """How many tokens the embedding has rows for."""
    return max((checkpoint.specs[name].shape[0] for name, kind in structure.others.items() if kind == "embedding"))


def _added_tokens(family: Family | None, vocabulary: Vocabulary | None, where: str) -> tuple[str, ...]:
    """The tokens that a target added to the family's; logged."""
    if family is None or (vocabulary.digest if vocabulary else None) == family.record.vocabulary:
        return ()
    added = added_tokens(read_vocabulary(family.root), vocabulary, where)
    if added:
        shown = ", ".join(visible(repr(token), characters=40) for token in added[:SHOWN])
        log.info("%s: %d tokens added to the family's vocabulary: %s", where, len(added), shown)
    return added
