"""Commands before the first run: make a workspace, and say what it still needs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from safegene.cli.console import AsJson, console, write_json
from safegene.text import visible
from safegene.workspace.layout import Workspace


def init(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    remote: Annotated[str | None, typer.Option(help="DVC remote: s3://bucket/prefix or a folder.")] = None,
    ledger: Annotated[str | None, typer.Option(help="Ledger: s3://bucket/prefix or a folder.")] = None,
    params: Annotated[Path | None, typer.Option(help="A params.yaml to start from.")] = None,
) -> None:
    """Make a workspace: a Git repository with DVC, parameters, prompt sets and a signing key."""
    from safegene.pipeline.init import init as make

    ws = make(folder, remote=remote, ledger=ledger, params=params)
    console.print(f"workspace {ws.root}", soft_wrap=True)
    console.print("next: [bold]safegene target add NAME SOURCE --task TASK[/], then [bold]safegene run[/]")


def doctor(
    targets: Annotated[list[str] | None, typer.Argument(help="Targets (default: all).", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Look at everything that a run needs, and say what is wrong and what mends it. Exit 1 if a run would fail."""
    from flows.server import check_server
    from safegene.pipeline.doctor import examine

    report = examine(Workspace.find(), targets or None).with_findings("server", check_server())
    if as_json:
        write_json(report.to_json())
    else:
        found = {finding.check for finding in report.findings}
        for name in report.checked:
            if name not in found:
                console.print(f"[green]ok[/]      {name}")
        for finding in report.findings:
            word = "[red]problem[/]" if finding.stops else "[yellow]note[/]   "
            console.print(f"{word} {finding.check}: {escape(visible(finding.message))}", soft_wrap=True)
            console.print(f"        remedy: {escape(visible(finding.remedy))}", soft_wrap=True)
    raise typer.Exit(int(bool(report.problems)))
