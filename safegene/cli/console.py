"""What the commands share: the console, two arguments, JSON output, and the origin of a promotion by hand."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from safegene.errors import SafegeneError
from safegene.workspace.git import head_commit
from safegene.workspace.layout import Workspace


def _width() -> int | None:
    """Columns of the output where it is no terminal and ``COLUMNS`` does not say; None lets rich find out."""
    return None if os.environ.get("COLUMNS", "").isdecimal() or (sys.stdout and sys.stdout.isatty()) else 120


console = Console(highlight=False, width=_width())


def complete_target(incomplete: str) -> list[str]:
    """Targets of the workspace for the shell; none where there is no usable workspace."""
    try:
        return [name for name in Workspace.find().targets.targets if name.startswith(incomplete)]
    except (SafegeneError, OSError):
        return []


Target = Annotated[
    str, typer.Argument(help="A target of data/targets.yaml.", show_default=False, autocompletion=complete_target)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON; rates and shares are in 0..1.")]


def table(*names: str) -> Table:
    """A table without lines, whose cells are folded where the terminal is narrow, and never cut off."""
    drawn = Table(box=None)
    for name in names:
        drawn.add_column(name, overflow="fold")
    return drawn


def write_json(content: Any) -> None:
    """Print plain JSON values."""
    sys.stdout.write(json.dumps(content, indent=2, allow_nan=False) + "\n")


@contextmanager
def ledger_committed(ws: Workspace, message: str) -> Iterator[None]:
    """Commit the ledger after the block, also where it recorded a refusal, and print what was committed or was not."""
    from safegene.pipeline.tracked import commit_ledger

    try:
        yield
    except SafegeneError:
        with suppress(SafegeneError, OSError):  # the caller must get the refusal, not this error
            _say(commit_ledger(ws, message))
        raise
    _say(commit_ledger(ws, message))


def _say(words: str) -> None:
    if words:
        console.print(words, soft_wrap=True, markup=False)


def manual_run(ws: Workspace) -> dict[str, str]:
    """The ``run`` fields of a record for a promotion by hand."""
    return {"run_id": "manual", "trigger": "manual", "git_commit": head_commit(ws.root)}
