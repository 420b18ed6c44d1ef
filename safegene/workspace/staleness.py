"""Whether an artefact was made from the present content of the workspace."""

from collections.abc import Collection, Mapping
from pathlib import Path

from safegene.errors import StaleArtifact
from safegene.workspace.digest import digest_file
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import Manifest


def is_data(name: str) -> bool:
    """Whether an input of a stage is a prompt set or task set."""
    return name in ("prompts", "task") or name.endswith(".jsonl")


def data_digests(workspace: Workspace) -> dict[str, str]:
    """Every prompt set and task set: path below ``data`` -> digest."""
    files = [*sorted(workspace.prompts.glob("*.jsonl")), *sorted(workspace.tasks.glob("*.jsonl"))]
    return {path.relative_to(workspace.data).as_posix(): digest_file(path) for path in files}


def stale_inputs(
    manifest: Manifest,
    current: Mapping[str, str],
    *,
    data: Collection[str] | None = None,
    required: Collection[str] = (),
) -> tuple[str, ...]:
    """Names of the inputs that differ from the present content of the workspace, sorted.

    Args:
        manifest: the artefact's manifest.
        current: input name -> present digest; inputs that it does not name are not compared.
        data: digests of the present prompt sets and task sets; None does not compare these inputs.
        required: names that must be among the inputs and in ``current``.
    """
    changed = {name for name, digest in manifest.inputs.items() if current.get(name, digest) != digest}
    missing = {name for name in required if name not in manifest.inputs or name not in current}
    sets = {name for name, digest in manifest.inputs.items() if data is not None and is_data(name)}
    return tuple(sorted(changed | missing | {name for name in sets if manifest.inputs[name] not in (data or ())}))


def require_current(
    name: str,
    folder: Path,
    manifest: Manifest,
    current: Mapping[str, str],
    *,
    data: Collection[str] | None = None,
    required: Collection[str] = (),
) -> None:
    """Raise where `stale_inputs` finds any.

    Args:
        name: of the artefact, for the message.
        folder: of the artefact, for the message.
        manifest: see `stale_inputs`.
        current: see `stale_inputs`.
        data: see `stale_inputs`.
        required: see `stale_inputs`.

    Raises:
        StaleArtifact: names the inputs, and the digests of the first.
    """
    if stale := stale_inputs(manifest, current, data=data, required=required):
        used, now = manifest.inputs.get(stale[0], "nothing"), current.get(stale[0], "another")
        raise StaleArtifact(
            f"expected {name} made from the present {', '.join(stale)}, got it made from another "
            f"({stale[0]}: {used}, now {now}), in {folder}",
            remedy="run `safegene run`, which runs the stages whose inputs have changed",
        )
