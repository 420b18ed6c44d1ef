"""A workspace of many targets in every state, whose verdicts the gate reached and whose records the ledger holds."""

from pathlib import Path

from safegene.pipeline.stages.promote import revoke
from safegene.workspace.costs import note_cost
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest
from safegene.workspace.params import Target, Targets, save_targets
from tests.factories.ledger import attempt, make_workspace

TASKS = ("billing", "contracts", "triage", "legal", "search", "support", "translation", "summary")
STATES = ("promoted", "improved", "refused", "replaced", "undecided", "new", *["promoted"] * 4)
"""What becomes of the targets, in turn; the last one of all is revoked."""


def name_of(number: int) -> str:
    """The name of a target."""
    return f"{TASKS[number % len(TASKS)]}-{number:02d}"


def make_portfolio(root: Path, targets: int) -> Workspace:
    """Targets in the states of `STATES`: one to three attempts each, with noted costs; one live release is revoked."""
    ws = make_workspace(root)
    save_targets(ws.targets_file, Targets())
    for number in range(targets):
        _make(ws, name_of(number), STATES[number % len(STATES)], number)
    last = next(name_of(n) for n in reversed(range(targets)) if STATES[n % len(STATES)] == "promoted")
    revoke(ws, str(read_manifest(ws.candidate(last)).digest), "its training data was withdrawn")
    for name in ws.targets.targets:
        _note_costs(ws, name)
    return ws


def _make(ws: Workspace, name: str, state: str, number: int) -> None:
    before = {"before": 6 + 7 * number % 24}
    if state == "new":
        entry = Target(source=f"s3://models/{name}", task="sentiment", fingerprint=name)
        save_targets(ws.targets_file, Targets(targets={**ws.targets.targets, name: entry}))
        return
    first = {"refused": "fail", "undecided": "inconclusive"}.get(state, "pass")
    attempt(ws, name, alpha=1.0, outcome=first, harm=before)
    if state in ("improved", "replaced", "refused"):
        attempt(ws, name, alpha=2.0, harm={"before": 60, "candidate": 1 + number % 2, "incumbent": 2})
    if state in ("replaced", "refused"):
        attempt(ws, name, alpha=3.0, outcome="fail", harm={"before": 70})


def _note_costs(ws: Workspace, name: str) -> None:
    """Costs as a run on this machine would note them."""
    for stage, folder, seconds in (
        ("fetch-target", ws.checkpoint(name), 2.0),
        ("calibrate", ws.candidate(name), 14.5),
        ("evaluate", ws.judgements(name), 9.75),
        ("gate", ws.verdict(name), 0.5),
    ):
        if (folder / "manifest.json").is_file():
            digest = str(read_manifest(folder, verify=False).digest)
            note_cost(ws.root, digest, f"{stage}@{name}", seconds)
