"""What leaves a workspace: a target's repair as a PEFT adapter with its card, or merged into a checkpoint.

Both read the candidate as it stands in the workspace, verified. What is *live* is `safegene.registry.resolve`'s to say.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from safegene.digest import strict_json
from safegene.errors import ParamsError
from safegene.manifest import read_manifest
from safegene.workspace import Workspace

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json", "coefficients.json")


def merge_target(ws: Workspace, target: str, out: Path, *, dtype: str, lossy: bool) -> dict[str, Any]:
    """Write the target with its repair merged in; see `safegene.export.merge.merge`.

    For a LoRA target the candidate holds the target's own LoRA too, so the merge starts from the base.
    """
    from safegene.export.merge import merge
    from safegene.sources import local_checkpoint
    from safegene.tensors.adapter import open_adapter
    from safegene.tensors.checkpoint import open_checkpoint

    require_target(ws, target)
    read_manifest(ws.candidate(target), stage="calibrate")
    limits = ws.params.fetch
    model = local_checkpoint(ws.checkpoint(target), limits, family=ws.aligned)
    checkpoint = open_checkpoint(model.root, model_types=limits.model_types)
    return merge(checkpoint, open_adapter(ws.candidate(target)).patch(), out=out, dtype=dtype, lossy=lossy)


def export_target(ws: Workspace, target: str, out: Path) -> dict[str, Any]:
    """Write the repair as a PEFT adapter with a model card that holds its verdict; what it loads on.

    Raises:
        ParamsError: ``out`` exists, or there is no such target.
        ArtifactError: the candidate is absent or altered.
    """
    from safegene.export.card import model_card

    require_target(ws, target)
    if out.exists():
        raise ParamsError(f"expected a new folder for the adapter, got {out}, which exists")
    candidate = ws.candidate(target)
    manifest = read_manifest(candidate, stage="calibrate")
    verdict, lineage = _verdict(ws, target), {**manifest.inputs, "candidate": manifest.digest}
    base = _json(candidate / "adapter_config.json")["base_model_name_or_path"]
    adapter = manifest.facts["adapter"]
    card = model_card(target=target, base_model=base, adapter=adapter, verdict=verdict, lineage=lineage)
    draft = out.with_name(f".{out.name}.{os.getpid()}.draft")
    draft.mkdir(parents=True)
    for name in ADAPTER_FILES:
        shutil.copyfile(candidate / name, draft / name)
    (draft / "README.md").write_text(card, encoding="utf-8")
    draft.rename(out)
    return {"loads_on": base, "parameters": adapter["extra_parameters"]}


def require_target(ws: Workspace, target: str) -> None:
    """Check that a target is named in the workspace.

    Raises:
        ParamsError: it is not.
    """
    if target not in ws.targets.targets:
        raise ParamsError(f"expected one of the targets {sorted(ws.targets.targets)}, got {target!r}")


def _verdict(ws: Workspace, target: str) -> dict[str, Any] | None:
    folder = ws.verdict(target)
    if not folder.is_dir():
        return None
    read_manifest(folder, stage="gate")
    return _json(folder / "verdict.json")


def _json(path: Path) -> dict[str, Any]:
    raw: dict[str, Any] = strict_json(path.read_bytes(), where=str(path))
    return raw
