"""``safegene merge`` and ``safegene export``: a target's repair as a merged checkpoint, or as an adapter with its card.

Both leave the pipeline, so neither is in ``dvc.yaml``; both verify what they read.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from safegene.checkpoints.adapter import CONFIG, WEIGHTS, open_adapter
from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.export.card import model_card
from safegene.checkpoints.sources import local_checkpoint
from safegene.errors import CheckpointError, StaleArtifact
from safegene.workspace.digest import strict_json
from safegene.workspace.manifest import read_manifest
from safegene.workspace.params import FetchParams


def merge(
    *,
    aligned: Path,
    target: Path,
    candidate: Path,
    out: Path,
    dtype: str = "float32",
    lossy: bool = False,
    limits: FetchParams | None = None,
) -> dict[str, Any]:
    """The target with its repair in its weights; for a LoRA target the base with both changes in its weights.

    Raises:
        CheckpointError: too little of the change would survive in ``dtype``, or ``out`` exists.
        ArtifactError: an artefact is unfinished or changed.

    Example:
        >>> facts = safegene.merge(
        ...     aligned=ws.aligned,
        ...     target=ws.checkpoint("sentiment"),
        ...     candidate=ws.candidate("sentiment"),
        ...     out=Path("merged"),
        ... )
        >>> facts["survival"] > 0.99
        True
    """
    from safegene.checkpoints.export.merge import merge as write

    read_manifest(candidate)
    model = local_checkpoint(target, limits, family=aligned)
    return write(open_checkpoint(model.root), open_adapter(candidate).patch(), out=out, dtype=dtype, lossy=lossy)


def export(candidate: Path, *, out: Path, target: str, verdict: Path | None = None) -> dict[str, Any]:
    """The repair as a PEFT adapter in a folder of its own, with a model card that holds the verdict.

    Returns:
        ``parameters``, ``rank``, ``matrices`` of the adapter and ``loads_on``, what it loads on.

    Raises:
        CheckpointError: ``out`` exists.
        ArtifactError: an artefact is unfinished or changed.

    Example:
        >>> facts = safegene.export(
        ...     ws.candidate("sentiment"),
        ...     out=Path("adapter"),
        ...     target="sentiment",
        ...     verdict=ws.verdict("sentiment"),
        ... )
        >>> sorted(path.name for path in Path("adapter").iterdir())
        ['README.md', 'adapter_config.json', 'adapter_model.safetensors']
    """
    receipt = read_manifest(candidate)
    adapter = open_adapter(candidate)
    facts: dict[str, Any] = {
        "parameters": adapter.parameters,
        "extra_parameters": receipt.facts.get("extra_parameters", adapter.parameters),
        "rank": adapter.rank,
        "matrices": len(adapter.modules),
        "loads_on": adapter.base_model_name,
    }
    lineage = {"candidate": receipt.digest, **receipt.inputs}
    gated = _verdict(verdict, receipt.digest) if verdict else None
    card = model_card(target=target, base_model=facts["loads_on"], adapter=facts, verdict=gated, lineage=lineage)
    if out.exists():
        raise CheckpointError(f"expected a new folder for the adapter, got {out}, which exists")
    draft = out.with_name(f".{out.name}.{os.getpid()}.draft")
    draft.mkdir(parents=True)
    try:
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(candidate / name, draft / name)
        (draft / "README.md").write_text(card, encoding="utf-8")
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return facts


def _verdict(artefact: Path, candidate: str) -> dict[str, Any]:
    """The verdict's payload, if it is about exactly this candidate."""
    about = read_manifest(artefact, stage="gate").inputs.get("candidate")
    if about != candidate:
        raise StaleArtifact(
            f"expected a verdict on the candidate {candidate}, got one on {about}, in {artefact}",
            remedy="`safegene run` gates the candidate as it is now",
        )
    path = artefact / "verdict.json"
    verdict: dict[str, Any] = strict_json(path.read_bytes(), where=str(path))
    return verdict
