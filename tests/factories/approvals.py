"""Promotions that need more than one person: a workspace with approvers, and promotions that wait for them."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from safegene.ledger.keys import create_key, public_key
from safegene.ledger.pins import APPROVE, PinnedKeys, read_pinned_keys, with_extras, write_pinned_keys
from safegene.pipeline.stages.promote import promote
from safegene.workspace.layout import Workspace
from tests.factories.ledger import TARGET, make_workspace, records

TODAY = datetime.now(UTC).date()
WEEK = (TODAY + timedelta(days=7)).isoformat()
As = Callable[[str], None]


def workspace_with_approvers(root: Path, people: As) -> Workspace:
    """A workspace of Ada, who signs, and Grace, Edsger and Barbara, who approve; promotions need two signatures."""
    people("ada")
    ws = make_workspace(root / "ws")
    file = ws.root / "ledger.pub"
    (ada,) = read_pinned_keys(file).keys
    keys = [with_extras(ada, owner="Ada")]
    for name in ("Grace", "Edsger", "Barbara"):
        folder = root / name.lower()
        keys.append(with_extras(public_key(create_key(folder), folder), owner=name, roles=[APPROVE]))
    write_pinned_keys(file, PinnedKeys(tuple(keys)))
    set_signatures(ws, 2)
    return ws


def set_signatures(ws: Workspace, count: int) -> None:
    """How many signatures ``params.yaml`` asks for."""
    path = ws.root / "params.yaml"
    lines = [
        f'promote: {{ledger: "ledger", signatures: {count}}}' if line.startswith("promote:") else line
        for line in path.read_text().splitlines()
    ]
    path.write_text("\n".join(lines) + "\n")


def waiting(ws: Workspace, people: As, **options: Any) -> str:
    """Ada promotes; the number of the record that waits."""
    people("ada")
    done = promote(ws, TARGET, **options)
    assert done.outcome == "pending"
    (record,) = [record for record in records(ws) if record.digest == done.record]
    assert record.outcome == "pending"
    assert record.release is None
    return str(record.sequence)
