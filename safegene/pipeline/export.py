"""``safegene merge`` and ``safegene export``: a target's repair as a merged checkpoint, or as an adapter with its card.

What they write leaves the workspace, so neither is a stage. Both verify the artefacts that they read.
"""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safegene.checkpoints.adapter import open_adapter
from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.export.card import model_card
from safegene.checkpoints.sources import local_checkpoint
from safegene.checkpoints.wanted import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from safegene.errors import CheckpointError
from safegene.gate import VerdictFile
from safegene.workspace.atomic import draft_folder, write_file
from safegene.workspace.manifest import read_manifest
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
    """

    parameters: int
    extra_parameters: int
    rank: int
    matrices: int
    loads_on: str


def merge(
    *,
    aligned: Path,
    target: Path,
    candidate: Path,
    out: Path,
    dtype: str = "float32",
    lossy: bool = False,
    limits: FetchParams | None = None,
) -> "MergedCheckpoint":
    """Write a target's weights with its repair added; for a LoRA target the base's, with both changes added.

    Args:
        aligned: artefact of the family's aligned model.
        target: artefact of the fine-tune.
        candidate: artefact with its repair.
        out: a new folder.
        dtype: of the merged tensors: ``float32`` or ``bfloat16``.
        lossy: write the checkpoint even if rounding to ``dtype`` removes much of the repair.
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

    read_manifest(candidate)
    checkpoint = open_checkpoint(local_checkpoint(target, limits, family=aligned).root)
    return write_merged(checkpoint, open_adapter(candidate).patch(), out=out, dtype=dtype, lossy=lossy)


def export(candidate: Path, *, out: Path, target: str, verdict: Path | None = None) -> ExportedAdapter:
    """Write a repair as a PEFT adapter in a folder of its own, with a model card that states the verdict.

    Args:
        candidate: artefact with the repair.
        out: a new folder.
        target: the fine-tune's name, for the card.
        verdict: artefact of the verdict; without one, the card says that the repair was not gated.

    Raises:
        CheckpointError: ``out`` exists.
        StaleArtifact: the verdict is about another candidate.
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
    manifest, adapter = read_manifest(candidate), open_adapter(candidate)
    exported = ExportedAdapter(
        parameters=adapter.parameters,
        extra_parameters=manifest.facts.get("extra_parameters", adapter.parameters),
        rank=adapter.rank,
        matrices=len(adapter.modules),
        loads_on=adapter.base_model_name,
    )
    card = model_card(
        target=target,
        base_model=exported.loads_on,
        adapter=asdict(exported),
        verdict=_verdict(verdict, manifest.digest) if verdict else None,
        lineage={"candidate": manifest.digest, **manifest.inputs},
    )
    if out.exists():
        raise CheckpointError(f"expected a new folder for the adapter, got {out}, which exists")
    with draft_folder(out) as draft:
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            shutil.copyfile(candidate / name, draft / name)
        write_file(draft / "README.md", card)
    return exported


def _verdict(artefact: Path, candidate: str) -> VerdictFile:
    """The verdict, if it is about this candidate."""
    manifest = read_manifest(artefact, stage="gate")
    require_current("verdict", artefact, manifest, {"candidate": candidate}, required=["candidate"])
    path = artefact / "verdict.json"
    return VerdictFile.parse(path.read_bytes(), where=str(path))
