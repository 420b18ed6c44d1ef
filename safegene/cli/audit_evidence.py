"""``safegene audit replay|pack|export``: what an auditor makes from a record."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from safegene.cli.console import AsJson, console, write_json
from safegene.workspace.layout import Workspace

NAMED = "A target that is live, or a record: its number, or at least 8 digits of its digest."
Record = Annotated[str, typer.Argument(metavar="RECORD|TARGET", help=NAMED, show_default=False)]


def audit_replay(name: Record, as_json: AsJson = False) -> None:
    """Make the artefacts of a record again in a fresh worktree and compare digests; exit 1 where they differ."""
    from safegene.pipeline.replay import COMPARED, replay

    result = replay(Workspace.find(), name)
    if as_json:
        artefacts = [{**asdict(one), "same": one.same} for one in result.artefacts]
        head = {"record": result.record.digest, "commit": result.commit, "same": result.same}
        write_json({**head, "artefacts": artefacts, "notes": list(result.notes)})
    else:
        for note in result.notes:
            console.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
        table = Table("artefact", "recorded", "made again", "", box=None)
        for one in result.artefacts:
            word = "[green]same[/]" if one.same else "[red]differs[/]" if one.recorded else "not recorded"
            table.add_row(one.name, one.recorded[7:27], one.rebuilt[7:27], word)
        console.print(table)
        for one in result.artefacts:
            if one.differs_in:
                console.print(f"{one.name} differs in {escape(', '.join(one.differs_in))}", soft_wrap=True)
        found = "the same digests" if result.same else "[red]other digests[/]"
        number, commit = result.record.sequence, result.commit[:12]
        console.print(f"record {number}, made again at commit {commit}: {found} for {', '.join(COMPARED)}")
    if not result.same:
        raise typer.Exit(1)
