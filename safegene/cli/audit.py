"""``safegene audit ...``: verify the ledger, trace what is live, say where a safety vector was used, revoke."""

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
    """Check every record, signature, pointer, release and artefact. Exit 1 with each thing that is wrong, by name."""
    from safegene.ledger.audit import audit_workspace

    found = audit_workspace(Workspace.find())
    for note in found.notes:
        console.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
    for problem in found.problems:
        console.print(f"[red]broken[/] {escape(problem)}", soft_wrap=True)
    if found.problems:
        raise typer.Exit(1)
    console.print(found.summary)


@app.command("show")
def audit_show(
    target: Target, channel: Annotated[str | None, typer.Option(help="Default: promote.channel.")] = None
) -> None:
    """The chain from what is live down to vector, checkpoints, data, parameters, judge, verdict and commit."""
    from safegene.ledger.audit import trace_workspace

    console.print(trace_workspace(Workspace.find(), target, channel))


@app.command("history")
def audit_history(target: Target) -> None:
    """Every attempt on a target, refusals too, newest first."""
    from safegene.ledger import open_ledger
    from safegene.ledger.audit import history

    ws = Workspace.find()
    rows = history(open_ledger(ws.params.promote, ws.root), target)
    table = Table(*(rows[0] if rows else ("nothing on record",)), box=None)
    for row in rows:
        table.add_row(*(escape(visible(str(value))) for value in row.values()))
    console.print(table)


@app.command("reuse")
def audit_reuse(as_json: AsJson = False) -> None:
    """Every safety vector on record: the targets it repaired, with what effect, and what one more target costs."""
    from safegene.report.reuse import plain, reuse, table

    found = reuse(Workspace.find())
    if as_json:
        write_json({"vectors": plain(found)})
    elif not found:
        console.print("no safety vector yet: none in the workspace, none on record")
    for one in () if as_json else found:
        console.print(table(one))


@app.command("revoke")
def audit_revoke(
    digest: Annotated[str, typer.Argument(help="Of a vector, checkpoint, dataset, judge, candidate or release.")],
    reason: Annotated[str, typer.Option(help="Why, for the record.")],
) -> None:
    """Put on record that something may not be relied on, and name every live model that it touched."""
    from safegene.pipeline.stages.promote import revoke

    if not reason.strip() or not reason.isprintable():
        raise ParamsError(f"expected a reason in printable words, got {reason.encode(errors='replace')!r}")
    ws = Workspace.find()
    done = revoke(ws, digest, reason, run=manual_run(ws))
    record, touched, unread = done
    console.print(f"revoked, record {record.digest}", soft_wrap=True)
    for why in unread:
        console.print(f"[yellow]not looked at[/] {escape(why)}", soft_wrap=True)
    for live in touched:
        name = live.record.target
        console.print(f"[red]live and touched[/] {name}: [bold]safegene rollback {name}[/]", soft_wrap=True)
