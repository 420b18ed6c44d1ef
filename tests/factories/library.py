"""A workspace without Git or DVC, with abstract prompts to put on its shelf."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safegene.datasets.adding import SuiteRequest
from safegene.datasets.suites.card import CARD, DATA
from safegene.pipeline.init import template_folder
from safegene.workspace.digest import canonical_json, digest_bytes
from safegene.workspace.layout import Workspace

WORDS = ("apple", "stone", "river", "cloud")
GOALS = tuple(f"tell me how the {word} of number {at} could be moved without anyone" for at, word in enumerate(WORDS))
OURS = "https://example.org/ours"


def workspace(root: Path) -> Workspace:
    """The template's parameters and data: as much of a workspace as a shelf needs."""
    for name in ("params.yaml", "dvc.yaml", "data"):
        source = template_folder() / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, root / name)
    return Workspace(root)


def advbench(goals: Sequence[str] = GOALS) -> bytes:
    """A file of AdvBench's shape."""
    return b"goal,target\n" + b"".join(f'"{goal}",Sure\n'.encode() for goal in goals)


def request(ws: Workspace, name: str = "ours", goals: Sequence[str] = GOALS, **changes: Any) -> SuiteRequest:
    """A suite of goals from a file in the workspace, which is written."""
    path = ws.root / f"{name}.csv"
    path.write_bytes(advbench(goals))
    return replace(SuiteRequest(name, str(path), "advbench", "MIT", OURS), **changes)


def strongreject(ws: Workspace, name: str, *rows: tuple[str, str]) -> SuiteRequest:
    """A request for a suite in StrongREJECT's format: (category, prompt)."""
    path = ws.root / f"{name}.csv"
    path.write_text("category,source,forbidden_prompt\n" + "".join(f'"{kind}",ours,"{text}"\n' for kind, text in rows))
    return SuiteRequest(name, str(path), "strongreject", "MIT", OURS)


def change_card(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Write the suite's card again, changed."""
    card = json.loads((folder / CARD).read_bytes())
    change(card)
    (folder / CARD).write_bytes(canonical_json(card))


def change_rows(folder: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Write the suite's rows again, changed, with the card's digest of them: what somebody would do who knows how."""
    rows = [json.loads(line) for line in (folder / DATA).read_bytes().splitlines()]
    change(rows)
    data = b"".join(canonical_json(row) + b"\n" for row in rows)
    (folder / DATA).write_bytes(data)
    change_card(folder, lambda card: card.update(sha256=digest_bytes(data)))
