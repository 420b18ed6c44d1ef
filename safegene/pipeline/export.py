"""``safegene merge`` and ``safegene export``: a target's repair as a merged checkpoint, or as an adapter with its card.

What they write leaves the workspace, so neither is a stage. Both verify the artefacts that they read.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safegene.checkpoints.chat_template import chat_files, copy_own_chat
from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.export.adapter import config_text, read_change, served_rank, serving_words
from safegene.checkpoints.export.base_model import base_model_name
from safegene.checkpoints.export.card import model_card
from safegene.checkpoints.record import read_record
from safegene.checkpoints.sources import local_checkpoint
from safegene.checkpoints.unsafe import read_json
from safegene.checkpoints.wanted import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from safegene.errors import CheckpointError, StaleArtifact
from safegene.gate import VerdictFile
from safegene.workspace.atomic import draft_folder, write_file
from safegene.workspace.manifest import Manifest, read_manifest
from safegene.workspace.params import FetchParams
from safegene.workspace.staleness import require_current

if TYPE_CHECKING:
    from safegene.checkpoints.export.merge import MergedCheckpoint


@dataclass(frozen=True)
class ExportedAdapter:
    """An exported PEFT adapter.

    Attributes:
        parameters: numbers in the adapter.
        extra_parameters: numbers that the repair adds; less than ``parameters`` where the adapter also holds the
            fine-tune's own change.
        rank: its rank.
        matrices: number of adapted matrices.
        loads_on: the checkpoint that it loads on, as its config names it.
        served_rank: the ``max_lora_rank`` with which vLLM serves it; None where its rank is too large.
        serving: how it is served, in words.
        outcome: of the verdict; None where the repair was not gated.
    """

    parameters: int
    extra_parameters: int
    rank: int
    matrices: int
    loads_on: str
    served_rank: int | None
    serving: str
    outcome: str | None


def merge(
    *,
    aligned: Path,
    target: Path,
    candidate: Path,
    out: Path,
    dtype: str = "auto",
    lossy: bool = False,
    verdict: Path | None = None,
    limits: FetchParams | None = None,
) -> "MergedCheckpoint":
    """Write a target's weights with its repair added; for a LoRA target the base's, with both changes added.

    A model card states the verdict and what the checkpoint was made from.

    Args:
        aligned: artefact of the family's aligned model.
        target: artefact of the fine-tune.
        candidate: artefact with its repair.
        out: a new folder.
        dtype: ``auto`` keeps every tensor's own; ``float32`` or ``bfloat16`` is that of the tensors that have the
            dtype of most of the checkpoint.
        lossy: write the checkpoint even if rounding to ``dtype`` removes much of the repair.
        verdict: artefact of the verdict; without one, the card says that the repair was not gated.
        limits: on a checkpoint that must be fetched again.

    Raises:
        CheckpointError: rounding would remove too much of the repair, or ``out`` exists.
        ArtifactError: an artefact is incomplete or altered.

    Example:
        >>> merged = safegene.merge(
        ...     aligned=ws.aligned,
        ...     target=ws.checkpoint("sentiment"),
        ...     candidate=ws.candidate("sentiment"),
        ...     out=Path("merged"),
        ... )
        >>> merged.survival > 0.99
        True
    """
    from safegene.checkpoints.export.merge import merge as write_merged

    manifest, record = read_manifest(candidate), read_record(target)
    checked = _verdict(verdict, manifest.digest) if verdict else None
    local = local_checkpoint(target, limits, family=aligned)
    checkpoint = open_checkpoint(local.root)
    source = record.base or record.digest
    merged = write_merged(checkpoint, read_change(candidate), out=out, dtype=dtype, lossy=lossy, source=source)
    copy_own_chat(chat_files(local.root, local.adapters), out)
    card = model_card(
        target=candidate.parent.name,
        base_model=base_model_name(read_record(aligned) if record.kind == "lora" else record)[0],
        adapter=manifest.facts,
        verdict=checked,
        lineage={"candidate": manifest.digest, **manifest.inputs},
        merged=merged,
    )
    write_file(out / "README.md", card)
    return merged


def export(
    candidate: Path,
    *,
    out: Path,
    target: str,
    verdict: Path | None = None,
    loads_on: Path | None = None,
    fine_tune: Path | None = None,
    limits: FetchParams | None = None,
) -> ExportedAdapter:
    """Write a repair as a PEFT adapter in a folder of its own, with a model card that states the verdict.

    Args:
        candidate: artefact with the repair.
        out: a new folder.
        target: the fine-tune's name, for the card.
        verdict: artefact of the verdict; without one, the card says that the repair was not gated.
        loads_on: artefact of the checkpoint that the adapter loads on (the aligned model of a LoRA target, else the
            target). Its copy in the cache is named in the config where loaders do not know its source.
        fine_tune: artefact of a LoRA target, with ``loads_on``; a tokenizer or template of its own is copied too.
        limits: on a checkpoint that must be fetched again.

    Raises:
        CheckpointError: ``out`` exists, or PEFT cannot carry the repair.
        StaleArtifact: the verdict is about another candidate, or the repair was not made from ``loads_on``.
        ArtifactError: an artefact is incomplete or altered.

    Example:
        >>> adapter = safegene.export(
        ...     ws.candidate("sentiment"),
        ...     out=Path("adapter"),
        ...     target="sentiment",
        ...     verdict=ws.verdict("sentiment"),
        ... )
        >>> adapter.loads_on
        'tiny://sentiment?seed=0'
        >>> sorted(path.name for path in Path("adapter").iterdir())
        ['README.md', 'adapter_config.json', 'adapter_model.safetensors']
    """
    manifest = read_manifest(candidate)
    if not manifest.facts.get("adapter_loads", True):
        raise CheckpointError(
            f"expected a repair that PEFT carries, got one that it does not: {manifest.facts['not_carried']}, "
            f"in {candidate}",
            remedy="export it as a merged checkpoint: `safegene merge`",
        )
    config = read_json(candidate / ADAPTER_CONFIG) | _base_model(manifest, loads_on, limits)
    checked = _verdict(verdict, manifest.digest) if verdict else None
    facts = {name: manifest.facts[name] for name in ("parameters", "extra_parameters", "rank", "matrices")}
    exported = ExportedAdapter(
        **facts,
        loads_on=config["base_model_name_or_path"],
        served_rank=served_rank(facts["rank"]),
        serving=serving_words(facts),
        outcome=checked.outcome if checked else None,
    )
    card = model_card(
        target=target,
        base_model=exported.loads_on,
        adapter=facts,
        verdict=checked,
        lineage={"candidate": manifest.digest, **manifest.inputs},
    )
    if out.exists():
        raise CheckpointError(f"expected a new folder for the adapter, got {out}, which exists")
    with draft_folder(out) as draft:
        shutil.copyfile(candidate / ADAPTER_WEIGHTS, draft / ADAPTER_WEIGHTS)
        write_file(draft / ADAPTER_CONFIG, config_text(config))
        write_file(draft / "README.md", card)
        if fine_tune and loads_on:
            local = local_checkpoint(fine_tune, limits, family=loads_on)
            copy_own_chat(chat_files(local.root, local.adapters), draft)
    return exported


def _base_model(manifest: Manifest, loads_on: Path | None, limits: FetchParams | None) -> dict[str, str]:
    """The keys of ``adapter_config.json`` that name the base; none where the candidate's stay."""
    if loads_on is None:
        return {}
    if (digest := read_manifest(loads_on).digest) not in manifest.inputs.values():
        raise StaleArtifact(
            f"expected a repair made from {loads_on}, which is {digest}, got one made from other artefacts",
            remedy="run `safegene run`: the repair is made again",
        )
    record = read_record(loads_on)
    name, revision = base_model_name(record)
    if name == record.source:
        name, revision = base_model_name(record, local_checkpoint(loads_on, limits).root)
    return {"base_model_name_or_path": name} | ({"revision": revision} if revision else {})


def _verdict(artefact: Path, candidate: str) -> VerdictFile:
    """The verdict, if it is about this candidate."""
    manifest = read_manifest(artefact, stage="gate")
    require_current("verdict", artefact, manifest, {"candidate": candidate}, required=["candidate"])
    path = artefact / "verdict.json"
    return VerdictFile.parse(path.read_bytes(), where=str(path))
