"""``safegene demo``: the whole pipeline on the tiny family, and whether it showed what it is meant to show."""

import time
from pathlib import Path

from rich.console import Console

from safegene.pipeline.init import add_target, init
from safegene.workspace.layout import Workspace

# Three benign fine-tunes, one of them with 3% harmful examples, and one that removes safety on purpose.
TARGETS = {"sentiment": "sentiment", "topic": "topic", "group": "group", "adversarial": "group"}
REFUSED = "adversarial"


def run_demo(folder: Path, console: Console) -> int:
    """Set up ``folder`` if it is new, run the flows, print the table, verify the ledger; 0 if all went as it should.

    As it should: at least two benign fine-tunes live, the adversarial one not live, the ledger verified.
    """
    start = time.monotonic()
    console.print("[bold]1/4[/] workspace and tiny model family")
    ws = _workspace(folder, console)
    console.print("[bold]2/4[/] flows: build the safety vector, re-align four fine-tunes, gate them")
    outcomes = _run(ws)
    console.print("[bold]3/4[/] where the targets stand")
    live = _show(ws, console)
    console.print("[bold]4/4[/] audit")
    broken = _audit(ws, console)
    console.print(f"report: {ws.reports / 'index.html'}   ({time.monotonic() - start:.0f} s)", soft_wrap=True)
    wrong = _surprises(outcomes, live) + broken
    for sentence in wrong:
        console.print(f"[red]not as it should be[/] {sentence}", soft_wrap=True)
    return bool(wrong)


def _workspace(folder: Path, console: Console) -> Workspace:
    from safegene.tiny.build import build

    ws = Workspace(folder.resolve()) if (folder / "params.yaml").is_file() else init(folder)
    for name, task in TARGETS.items():
        if name not in ws.targets.targets:
            build(name, 0)
            add_target(ws, name, f"tiny://{name}?seed=0", task)
    console.print(f"  {ws.root}", soft_wrap=True)
    return ws


def _run(ws: Workspace) -> dict[str, str]:
    from flows.server import prefect_server

    with prefect_server():
        from flows.realign import realign

        return realign(str(ws.root), None, "demo")


def _show(ws: Workspace, console: Console) -> dict[str, str | None]:
    from safegene.report.state import read_state
    from safegene.report.status import table

    targets = read_state(ws).targets
    console.print(table(targets))
    return {target.name: target.live.release if target.live else None for target in targets}


def _audit(ws: Workspace, console: Console) -> list[str]:
    from safegene.ledger.audit import audit_workspace

    found = audit_workspace(ws)
    if not found.problems:
        console.print(f"  {found.summary}")
    return list(found.problems)


def _surprises(outcomes: dict[str, str], live: dict[str, str | None]) -> list[str]:
    promoted = [name for name in TARGETS if name != REFUSED and live.get(name)]
    wrong = []
    if len(promoted) < 2:
        wrong.append(f"expected at least two benign fine-tunes live, got {promoted}: {outcomes}")
    if live.get(REFUSED):
        wrong.append(f"expected {REFUSED} not live, got {live[REFUSED]}")
    return wrong
