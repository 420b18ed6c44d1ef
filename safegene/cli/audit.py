"""``safegene audit ...``: verify the ledger, trace what is live, list attempts and uses of a vector, revoke."""

from dataclasses import astuple, fields
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from safegene.cli.console import AsJson, Target, console, manual_run, write_json
from safegene.errors import ParamsError
from safegene.text import visible
from safegene.workspace.layout import Workspace

app = typer.Typer(no_args_is_help=True, help="Verify the ledger, and trace what is live.")


@app.command("verify")
def audit_verify() -> None:
    """Verify every record, signature, pointer, release and artefact; exit 1 and name each problem if there is one."""
    from safegene.ledger.audit import audit_workspace

    report = audit_workspace(Workspace.find())
    for note in report.notes:
        console.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
    for problem in report.problems:
        console.print(f"[red]problem[/] {escape(problem)}", soft_wrap=True)
    if report.problems:
        raise typer.Exit(1)
    console.print(report.summary)


@app.command("show")
def audit_show(
    target: Target, channel: Annotated[str | None, typer.Option(help="Default: promote.channel.")] = None
) -> None:
    """Show the lineage of what is live: verdict, vector, checkpoints, data, parameters, judge and commit."""
    from safegene.ledger.trace import trace_workspace

    console.print(trace_workspace(Workspace.find(), target, channel))


@app.command("history")
def audit_history(target: Target) -> None:
    """List every attempt on a target, with refused ones, newest first."""
    from safegene.ledger.chain import open_ledger
    from safegene.ledger.trace import history

    ws = Workspace.find()
    rows = history(open_ledger(ws.params.promote, ws.root), target)
    if not rows:
        console.print(f"{target} has no record yet")
        return
    table = Table(*(field.name for field in fields(rows[0])), box=None)
    for row in rows:
        cells = (*astuple(row)[:-1], "yes" if row.live else "no")
        table.add_row(*(escape(visible(str(cell))) for cell in cells))
    console.print(table)


@app.command("reuse")
def audit_reuse(as_json: AsJson = False) -> None:
    """List every safety vector: the targets that it repaired, their rates, and the cost of one more target."""
    from safegene.report.reuse import plain, reuse, table

    vectors = reuse(Workspace.find())
    if as_json:
        write_json({"vectors": plain(vectors)})
        return
    if not vectors:
        console.print("there is no safety vector yet, neither in the workspace nor in the ledger")
    for vector in vectors:
        console.print(table(vector))


@app.command("revoke")
def audit_revoke(
    digest: Annotated[str, typer.Argument(help="Of a vector, checkpoint, dataset, judge, candidate or release.")],
    reason: Annotated[str, typer.Option(help="Why; it goes into the record.")],
) -> None:
    """Record that a digest must not be relied on, and name every live release that rests on it."""
    from safegene.pipeline.stages.promote import revoke

    if not reason.strip() or not reason.isprintable():
        raise ParamsError(f"expected a reason in printable words, got {reason.encode(errors='replace')!r}")
    ws = Workspace.find()
    revocation = revoke(ws, digest, reason, run=manual_run(ws))
    console.print(f"revoked {digest}, record {revocation.record.digest}", soft_wrap=True)
    for error in revocation.unread:
        console.print(f"[yellow]not checked[/] {escape(error)}", soft_wrap=True)
    for live in revocation.affected:
        record = live.record
        option = "" if record.channel == ws.params.promote.channel else f" --channel {record.channel}"
        console.print(
            f"[red]affected[/] {record.target} is live on {record.channel} and rests on it; roll it back: "
            f"[bold]safegene rollback {record.target}{option}[/]",
            soft_wrap=True,
        )
