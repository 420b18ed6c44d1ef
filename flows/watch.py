"""Flow ``watch``: find new fine-tunes and changed family checkpoints; announce each digest once.

``data/targets.yaml`` is the memory: what it names has been announced. It is written before the event is emitted, so a
checkpoint is never announced twice; should the event be lost, the scheduled run re-aligns every target anyway.
"""

from pathlib import Path

from prefect import flow
from prefect.events import emit_event
from rich.markup import escape

from flows.tasks import console, exclusive
from safegene.checkpoints.sources import discover, fingerprint
from safegene.errors import ParamsError, SafegeneError
from safegene.workspace.layout import Workspace
from safegene.workspace.params import Target, Targets, save_targets

DISCOVERED = "safegene.target.discovered"
FAMILY_CHANGED = "safegene.family.changed"


@flow(name="watch", flow_run_name="watch {root}", persist_result=False)
def watch(root: str) -> list[str]:
    """Look once; the names announced (``aligned`` for the family)."""
    ws = Workspace(Path(root))
    with exclusive(root):
        before = ws.targets
        after = look(ws)
        if after == before:
            return []
        save_targets(ws.targets_file, after)
    return announce(ws, before, after)


def look(ws: Workspace) -> Targets:
    """The targets as they would be with everything new or changed in them.

    A target whose source cannot be read keeps its pin, and a folder that is no whole checkpoint is left out; both are
    said, and neither keeps the others from being seen.

    Raises:
        ParamsError: a folder is watched but ``watch.task`` does not say which task its targets are measured on.
    """
    params, targets = ws.params, ws.targets
    found = {} if not params.watch.folders else dict(_found(ws, targets))
    known = {name: _again(name, entry) for name, entry in targets.targets.items() if name not in found}
    return Targets(
        aligned=fingerprint(params.family.aligned),
        degraded={uri: fingerprint(uri) for uri in params.family.degraded},
        targets={**known, **found},
    )


def _again(name: str, entry: Target) -> Target:
    try:
        return entry.model_copy(update={"fingerprint": fingerprint(entry.source)})
    except SafegeneError as error:
        console.print(f"  [yellow]not seen[/] {name}: {escape(error.message)}", soft_wrap=True)
        return entry


def _found(ws: Workspace, targets: Targets) -> list[tuple[str, Target]]:
    task = ws.params.watch.task
    if task is None:
        raise ParamsError(
            f"expected watch.task in {ws.root / 'params.yaml'} beside watch.folders, got none",
            remedy="name the task set that discovered targets are measured on",
        )
    by_source = {entry.source: name for name, entry in targets.targets.items()}
    found: list[tuple[str, Target]] = []
    for folder in ws.params.watch.folders:
        whole, skipped = discover(folder)
        for name, why in skipped.items():
            console.print(f"  [yellow]left out[/] {name}: {escape(why)}", soft_wrap=True)
        for name, source, seen in whole:
            key = by_source.get(source) or _unused(name, {*targets.targets, *(n for n, _ in found)})
            old = targets.targets.get(key)
            found.append((key, Target(source=source, task=old.task if old else task, fingerprint=seen)))
    return found


def _unused(name: str, taken: set[str]) -> str:
    names = (name if i == 1 else f"{name}-{i}" for i in range(1, len(taken) + 2))
    return next(n for n in names if n not in taken)


def announce(ws: Workspace, before: Targets, after: Targets) -> list[str]:
    """Emit one event per new or changed digest."""
    told = []
    if before.aligned is not None and (before.aligned, before.degraded) != (after.aligned, after.degraded):
        _emit(ws, FAMILY_CHANGED, "aligned", after.aligned or "")
        told.append("aligned")
    for name, entry in after.targets.items():
        old = before.targets.get(name)
        if old is None or old.fingerprint != entry.fingerprint:
            _emit(ws, DISCOVERED, name, entry.fingerprint)
            told.append(name)
    return told


def _emit(ws: Workspace, event: str, name: str, digest: str) -> None:
    resource = {"prefect.resource.id": f"safegene.{name}", "safegene.workspace": str(ws.root)}
    emit_event(event=event, resource=resource, payload={"target": name, "fingerprint": digest})
    console.print(f"  [cyan]{event}[/] {name} {digest[:19]}")
