"""Flow ``watch``: find new fine-tunes and changed checkpoints of the family, and announce each fingerprint.

What is new must be complete, and the same in two looks, `WatchParams.settle_seconds` apart. What ``data/targets.yaml``
names has been announced; `safegene.pipeline.watched` keeps what became of it, and says what is announced again.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from prefect import flow
from prefect.events import emit_event
from rich.markup import escape

from flows.build import vector_pin
from flows.schedule import cancel_missed_runs
from flows.shown import run_name, tag_run
from flows.tasks import commit, console, exclusive, share, update
from safegene.checkpoints.sources import discover, fingerprint
from safegene.checkpoints.sources.discovery import DiscoveredCheckpoint
from safegene.errors import ParamsError, SafegeneError
from safegene.pipeline.watched import Discovery, read_discoveries, to_announce
from safegene.workspace.layout import Workspace
from safegene.workspace.params import Target, Targets, save_targets

DISCOVERED = "safegene.target.discovered"
FAMILY_CHANGED = "safegene.family.changed"


Say = Callable[[str, str, str], None]


@flow(name="watch", flow_run_name=run_name, persist_result=False)
def watch(root: str) -> list[str]:
    """Look, and return the names that were announced (``aligned`` for the family)."""
    ws = Workspace(Path(root).resolve())
    root = str(ws.root)
    cancel_missed_runs()
    tag_run(root, [])
    with exclusive(root):
        update(root)
        before = ws.targets
        after = look_twice(ws, before)
        due = to_announce(ws, before, after)
        if after != before:
            save_targets(ws.targets_file, after)
            if ws.params.flow.push_commits:  # the worker that gets the event has another clone
                commit(root, f"watch: {', '.join(due) or 'changes'}")
                share(root)
        _say_given_up(ws, after)
    return announce(ws, before, after, due)


def look_twice(ws: Workspace, before: Targets, sleep: Callable[[float], None] = time.sleep) -> Targets:
    """What a look sees; where that is something new, only what a second look sees too.

    An upload that goes on changes sizes, times or names between the looks: it is left for the next watch.
    """
    first = look(ws, before, say=lambda *_: None)
    if first != before:
        sleep(ws.params.watch.settle_seconds)
    return settled(before, first, look(ws, before))


def settled(before: Targets, first: Targets, second: Targets) -> Targets:
    """The targets of the second look, without what the first one saw otherwise; each is printed."""
    entries = dict[str, Target]()
    for name, entry in second.targets.items():
        if first.targets.get(name) == entry:
            entries[name] = entry
            continue
        _say("not settled", name, "it changed between two looks; it is looked at again")
        if name in before.targets:
            entries[name] = before.targets[name]
    family = ("aligned", "vector", "degraded")
    steady = {key: getattr(second, key) for key in family if getattr(first, key) == getattr(second, key)}
    aliases = {source: name for source, name in second.aliases.items() if name in entries}
    return second.model_copy(
        update={key: getattr(before, key) for key in family} | steady | {"targets": entries, "aliases": aliases}
    )


def _say(word: str, name: str, why: str) -> None:
    console.print(f"  [yellow]{word}[/] {name}: {escape(why)}", soft_wrap=True)


def _say_given_up(ws: Workspace, targets: Targets) -> None:
    for name in targets.targets:
        rows = read_discoveries(ws, name)
        if rows and rows[-1].given_up:
            _say("given up", name, f"{rows[-1].given_up}; next: safegene run {name}")


def look(ws: Workspace, targets: Targets | None = None, say: Say = _say) -> Targets:
    """The targets with every new checkpoint added and every fingerprint up to date; nothing is written.

    A target whose source cannot be read keeps its pin, and a folder without a complete checkpoint is skipped; both are
    printed, and the others are read all the same. A new checkpoint of the same content as a target becomes an alias.

    Raises:
        ParamsError: a folder is watched but ``watch.task`` does not say which task its targets are measured on.
    """
    params, targets = ws.params, targets or ws.targets
    found = _discovered(ws, targets, say) if params.watch.folders else []
    pins = {source: pin for _, source, pin in found}
    entries = {name: _refreshed(name, entry, pins, say) for name, entry in targets.targets.items()}
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
            say("same", source, f"it has the content of {name}, which is evaluated once, under that name")
    return Targets(
        aligned=fingerprint(params.family.aligned),
        vector=vector_pin(params.family),
        degraded={uri: fingerprint(uri) for uri in params.family.degraded},
        targets=entries,
        aliases=aliases,
    )


def _same(entry: Target, new: Target) -> bool:
    return (entry.fingerprint, entry.task) == (new.fingerprint, new.task)


def _refreshed(name: str, entry: Target, pins: Mapping[str, str], say: Say) -> Target:
    try:
        pin = pins.get(entry.source) or fingerprint(entry.source)
        return entry.model_copy(update={"fingerprint": pin})
    except SafegeneError as error:
        say("not read", name, error.message)
        return entry


def _discovered(ws: Workspace, targets: Targets, say: Say) -> list[DiscoveredCheckpoint]:
    if ws.params.watch.task is None:
        raise ParamsError(
            f"expected watch.task beside watch.folders, got none, in {ws.root / 'params.yaml'}",
            remedy="name the task set that discovered targets are measured on",
        )
    discovered: list[DiscoveredCheckpoint] = []
    known = {entry.source: entry.fingerprint for entry in targets.targets.values()}
    for folder in ws.params.watch.folders:
        checkpoints, skipped = discover(folder, known)
        for name, reason in skipped.items():
            say("skipped", name, reason)
        discovered += checkpoints
    return discovered


def _unused(name: str, taken: set[str]) -> str:
    names = (name if i == 1 else f"{name}-{i}" for i in range(1, len(taken) + 2))
    return next(n for n in names if n not in taken)


def announce(ws: Workspace, before: Targets, after: Targets, due: Mapping[str, Discovery]) -> list[str]:
    """Emit an event for the family where it has changed, and for each target that is due; return all names."""
    announced = []
    family = [(each.aligned, each.vector, each.degraded) for each in (before, after)]
    if before.aligned is not None and family[0] != family[1]:
        _emit(ws, FAMILY_CHANGED, "aligned", after.aligned or "")
        announced.append("aligned")
    for name, discovery in due.items():
        _emit(ws, DISCOVERED, name, discovery.fingerprint, work=discovery.work, tries=discovery.tries)
        announced.append(name)
    return announced


def _emit(ws: Workspace, event: str, name: str, digest: str, *, work: str = "", tries: int = 1) -> None:
    once = f"{name} {work or digest} {tries}"  # Prefect starts one run for all events of an hour that have the same
    resource = {"prefect.resource.id": f"safegene.{name}", "safegene.workspace": ws.root.name, "safegene.once": once}
    emit_event(event=event, resource=resource, payload={"target": name, "fingerprint": digest, "work": work})
    console.print(f"  [cyan]{event}[/] {name} {digest[:19]}")
