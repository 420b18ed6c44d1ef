"""``safegene demo``: the whole pipeline on the tiny model family, and a check of its results."""

import time
from pathlib import Path

from rich.console import Console

from safegene.cli.workspace import run_flow
from safegene.pipeline.init import add_target, init
from safegene.report.state import read_state
from safegene.report.status import table
from safegene.workspace.layout import Workspace

# Target -> task. Three benign fine-tunes, one of them with 3% harmful examples, and one that removes safety on purpose.
TARGETS = {"sentiment": "sentiment", "topic": "topic", "group": "group", "adversarial": "group"}
REFUSED = "adversarial"


def run_demo(folder: Path, console: Console) -> int:
    """Make a workspace in ``folder`` unless there is one, run the flows, print the table and verify the ledger.

    Returns:
        Exit code: 0 if at least two benign fine-tunes are live, the adversarial one is not, and the ledger verifies;
        otherwise 1.
    """
    start = time.monotonic()
    console.print("[bold]1/4[/] workspace and tiny model family")
    ws = _workspace(folder, console)
    console.print("[bold]2/4[/] flows: build the safety vector, re-align four fine-tunes, gate them")
    outcomes = run_flow(ws, None, "demo")
    console.print("[bold]3/4[/] state of the targets")
    live = _show(ws, console)
    console.print("[bold]4/4[/] audit")
    problems = unexpected(outcomes, live) + _audit(ws, console)
    console.print(f"report: {ws.reports / 'index.html'}   ({time.monotonic() - start:.0f} s)", soft_wrap=True)
    for problem in problems:
        console.print(f"[red]unexpected result[/] {problem}", soft_wrap=True)
    return int(bool(problems))


def _workspace(folder: Path, console: Console) -> Workspace:
    ws = Workspace(folder.resolve()) if (folder / "params.yaml").is_file() else init(folder)
    for name, task in TARGETS.items():
        if name not in ws.targets.targets:
            from safegene.tiny.build import build  # imports torch

            build(name, 0)
            add_target(ws, name, f"tiny://{name}?seed=0", task)
    console.print(f"  {ws.root}", soft_wrap=True)
    return ws


def _show(ws: Workspace, console: Console) -> dict[str, str | None]:
    """Print the table of targets; target -> digest of what is live."""
    targets = read_state(ws).targets
    console.print(table(targets))
    return {target.name: target.live.release if target.live else None for target in targets}


def _audit(ws: Workspace, console: Console) -> list[str]:
    """Verify the ledger and what is live; the problems."""
    from safegene.ledger.audit import audit_workspace

    audit = audit_workspace(ws)
    if not audit.problems:
        console.print(f"  {audit.summary}")
    return list(audit.problems)


def unexpected(outcomes: dict[str, str], live: dict[str, str | None]) -> list[str]:
    """How the results differ from those that the demo is made to show."""
    promoted = [name for name in TARGETS if name != REFUSED and live.get(name)]
    problems = []
    if len(promoted) < 2:
        ended = ", ".join(f"{name} {outcome}" for name, outcome in outcomes.items())
        problems.append(f"expected at least two benign fine-tunes live, got {', '.join(promoted) or 'none'} ({ended})")
    if live.get(REFUSED):
        problems.append(f"expected {REFUSED} not live, got {live[REFUSED]}")
    return problems
