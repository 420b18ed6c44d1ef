"""Flow ``watch``: find new fine-tunes and changed checkpoints of the family, and announce each fingerprint once.

What ``data/targets.yaml`` names has been announced. The file is written before the event is emitted, so that nothing is
announced twice; if an event is lost, the scheduled run re-aligns every target all the same.
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
    """Look once, and return the names that were announced (``aligned`` for the family)."""
    ws = Workspace(Path(root))
    with exclusive(root):
        before = ws.targets
        after = look(ws)
        if after == before:
            return []
        save_targets(ws.targets_file, after)
    return announce(ws, before, after)


def look(ws: Workspace) -> Targets:
    """The targets with every new checkpoint added and every fingerprint up to date; nothing is written.

    A target whose source cannot be read keeps its pin, and a folder without a complete checkpoint is skipped; both are
    printed, and the others are read all the same.

    Raises:
        ParamsError: a folder is watched but ``watch.task`` does not say which task its targets are measured on.
    """
    params, targets = ws.params, ws.targets
    discovered = dict(_discovered(ws, targets)) if params.watch.folders else {}
    known = {name: _refreshed(name, entry) for name, entry in targets.targets.items() if name not in discovered}
    return Targets(
        aligned=fingerprint(params.family.aligned),
        degraded={uri: fingerprint(uri) for uri in params.family.degraded},
        targets={**known, **discovered},
    )


def _refreshed(name: str, entry: Target) -> Target:
    try:
        return entry.model_copy(update={"fingerprint": fingerprint(entry.source)})
    except SafegeneError as error:
        console.print(f"  [yellow]not read[/] {name}: {escape(error.message)}", soft_wrap=True)
        return entry


def _discovered(ws: Workspace, targets: Targets) -> list[tuple[str, Target]]:
    task = ws.params.watch.task
    if task is None:
        raise ParamsError(
            f"expected watch.task beside watch.folders, got none, in {ws.root / 'params.yaml'}",
            remedy="name the task set that discovered targets are measured on",
        )
    by_source = {entry.source: name for name, entry in targets.targets.items()}
    discovered: list[tuple[str, Target]] = []
    for folder in ws.params.watch.folders:
        checkpoints, skipped = discover(folder)
        for name, reason in skipped.items():
            console.print(f"  [yellow]skipped[/] {name}: {escape(reason)}", soft_wrap=True)
        for name, source, pin in checkpoints:
            key = by_source.get(source) or _unused(name, {*targets.targets, *(taken for taken, _ in discovered)})
            old = targets.targets.get(key)
            discovered.append((key, Target(source=source, task=old.task if old else task, fingerprint=pin)))
    return discovered


def _unused(name: str, taken: set[str]) -> str:
    names = (name if i == 1 else f"{name}-{i}" for i in range(1, len(taken) + 2))
    return next(n for n in names if n not in taken)


def announce(ws: Workspace, before: Targets, after: Targets) -> list[str]:
    """Emit an event for each new or changed fingerprint, and return the names."""
    announced = []
    if before.aligned is not None and (before.aligned, before.degraded) != (after.aligned, after.degraded):
        _emit(ws, FAMILY_CHANGED, "aligned", after.aligned or "")
        announced.append("aligned")
    for name, entry in after.targets.items():
        old = before.targets.get(name)
        if old is None or old.fingerprint != entry.fingerprint:
            _emit(ws, DISCOVERED, name, entry.fingerprint)
            announced.append(name)
    return announced


def _emit(ws: Workspace, event: str, name: str, digest: str) -> None:
    resource = {"prefect.resource.id": f"safegene.{name}", "safegene.workspace": str(ws.root)}
    emit_event(event=event, resource=resource, payload={"target": name, "fingerprint": digest})
    console.print(f"  [cyan]{event}[/] {name} {digest[:19]}")
