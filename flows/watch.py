"""Flow ``watch``: find new fine-tunes and changed checkpoints of the family, and announce each fingerprint.

What ``data/targets.yaml`` names has been announced. The file is written before the event is emitted, so that nothing is
announced twice. What was announced and came to no decision is announced again, see `flows.announcements`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from prefect import flow
from prefect.events import emit_event
from rich.markup import escape

from flows.announcements import note_announcement, to_announce_again
from flows.build import vector_pin
from flows.shown import run_name, tag_run
from flows.tasks import console, exclusive
from safegene.checkpoints.sources import discover, fingerprint
from safegene.checkpoints.sources.discovery import DiscoveredCheckpoint
from safegene.errors import ParamsError, SafegeneError
from safegene.workspace.layout import Workspace
from safegene.workspace.params import Target, Targets, save_targets

DISCOVERED = "safegene.target.discovered"
FAMILY_CHANGED = "safegene.family.changed"


@flow(name="watch", flow_run_name=run_name, persist_result=False)
def watch(root: str) -> list[str]:
    """Look once, and return the names that were announced (``aligned`` for the family)."""
    ws = Workspace(Path(root))
    tag_run(root, [])
    with exclusive(root):
        before = ws.targets
        after = look(ws)
        if after != before:
            save_targets(ws.targets_file, after)
        again = to_announce_again(ws, after)
    return announce(ws, before, after, again)


def look(ws: Workspace) -> Targets:
    """The targets with every new checkpoint added and every fingerprint up to date; nothing is written.

    A target whose source cannot be read keeps its pin, and a folder without a complete checkpoint is skipped; both are
    printed, and the others are read all the same. A new checkpoint of the same content as a target becomes an alias.

    Raises:
        ParamsError: a folder is watched but ``watch.task`` does not say which task its targets are measured on.
    """
    params, targets = ws.params, ws.targets
    found = _discovered(ws) if params.watch.folders else []
    pins = {source: pin for _, source, pin in found}
    entries = {name: _refreshed(name, entry, pins) for name, entry in targets.targets.items()}
    known, aliases = {entry.source for entry in entries.values()}, dict[str, str]()
    for name, source, pin in found:
        if source in known:
            continue
        new = Target(source=source, task=str(params.watch.task), fingerprint=pin)
        if same := next((other for other, entry in entries.items() if _same(entry, new)), None):
            aliases[source] = same
        else:
            entries[_unused(name, {*entries})] = new
    for source, name in aliases.items():
        if targets.aliases.get(source) != name:
            said = f"{source} has the content of {name}, which is evaluated once, under that name"
            console.print(f"  [yellow]same[/] {escape(said)}", soft_wrap=True)
    return Targets(
        aligned=fingerprint(params.family.aligned),
        vector=vector_pin(params.family),
        degraded={uri: fingerprint(uri) for uri in params.family.degraded},
        targets=entries,
        aliases=aliases,
    )


def _same(entry: Target, new: Target) -> bool:
    return (entry.fingerprint, entry.task) == (new.fingerprint, new.task)


def _refreshed(name: str, entry: Target, pins: Mapping[str, str]) -> Target:
    try:
        pin = pins.get(entry.source) or fingerprint(entry.source)
        return entry.model_copy(update={"fingerprint": pin})
    except SafegeneError as error:
        console.print(f"  [yellow]not read[/] {name}: {escape(error.message)}", soft_wrap=True)
        return entry


def _discovered(ws: Workspace) -> list[DiscoveredCheckpoint]:
    if ws.params.watch.task is None:
        raise ParamsError(
            f"expected watch.task beside watch.folders, got none, in {ws.root / 'params.yaml'}",
            remedy="name the task set that discovered targets are measured on",
        )
    discovered: list[DiscoveredCheckpoint] = []
    for folder in ws.params.watch.folders:
        checkpoints, skipped = discover(folder)
        for name, reason in skipped.items():
            console.print(f"  [yellow]skipped[/] {name}: {escape(reason)}", soft_wrap=True)
        discovered += checkpoints
    return discovered


def _unused(name: str, taken: set[str]) -> str:
    names = (name if i == 1 else f"{name}-{i}" for i in range(1, len(taken) + 2))
    return next(n for n in names if n not in taken)


def announce(ws: Workspace, before: Targets, after: Targets, again: Sequence[str] = ()) -> list[str]:
    """Emit an event for each new or changed fingerprint, and for the names in ``again``; return all names."""
    announced = []
    family = [(each.aligned, each.vector, each.degraded) for each in (before, after)]
    if before.aligned is not None and family[0] != family[1]:
        _emit(ws, FAMILY_CHANGED, "aligned", after.aligned or "")
        announced.append("aligned")
    for name, entry in after.targets.items():
        old = before.targets.get(name)
        if old is None or old.fingerprint != entry.fingerprint or name in again:
            note_announcement(ws, name, entry.fingerprint)
            _emit(ws, DISCOVERED, name, entry.fingerprint)
            announced.append(name)
    return announced


def _emit(ws: Workspace, event: str, name: str, digest: str) -> None:
    resource = {"prefect.resource.id": f"safegene.{name}", "safegene.workspace": str(ws.root)}
    emit_event(event=event, resource=resource, payload={"target": name, "fingerprint": digest})
    console.print(f"  [cyan]{event}[/] {name} {digest[:19]}")
