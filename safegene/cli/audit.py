"""``safegene audit ...``: verify the ledger, show and compare records, list what a digest touched, revoke."""

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, fields
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from safegene.cli.audit_evidence import NAMED, audit_pack, audit_replay, export_app
from safegene.cli.console import AsJson, Target, console, ledger_committed, manual_run, table, write_json
from safegene.errors import ParamsError
from safegene.text import counted, visible
from safegene.workspace.layout import Workspace

if TYPE_CHECKING:
    from safegene.ledger.chain import Ledger

app = typer.Typer(no_args_is_help=True, help="Verify the ledger, and trace what is live.")
app.command("replay")(audit_replay)
app.command("pack")(audit_pack)
app.add_typer(export_app, name="export")


@app.command("verify")
def audit_verify(
    online: Annotated[
        bool,
        typer.Option("--online", help="Also ask the sources of what is live, and the DVC remote; bounded in time."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Verify every record, signature, pointer, release and artefact; exit 1 and name each problem if there is one."""
    from safegene.ledger.audit import audit_workspace

    ws = Workspace.find()
    report = audit_workspace(ws)
    notes, problems, summary = [*report.notes], [*report.problems], report.summary
    if online and not problems:
        from safegene.ledger.online import check_online

        outside = check_online(ws, _open(ws))
        notes += outside.notes
        problems += outside.problems
        summary += f"; {outside.sources} sources hold what the records name"
    if as_json:
        write_json({"summary": summary, "problems": problems, "notes": notes, "trust": [*report.trust]})
        if problems:
            raise typer.Exit(1)
        return
    for line in report.trust:
        console.print(f"[dim]trust[/] {escape(line)}", soft_wrap=True)
    for note in notes:
        console.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
    for problem in problems:
        console.print(f"[red]problem[/] {escape(problem)}", soft_wrap=True)
    if problems:
        raise typer.Exit(1)
    console.print(summary)


@app.command("show")
def audit_show(
    name: Annotated[str, typer.Argument(metavar="RECORD|TARGET", help=NAMED, show_default=False)],
    channel: Annotated[str | None, typer.Option(help="Of a target; default: promote.channel.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the lineage of what is live (verdict, vector, checkpoints, data, judge, commit), or all of one record."""
    from safegene.ledger.trace import content_tree, trace_workspace

    content = trace_workspace(Workspace.find(), name, channel)
    if as_json:
        write_json(content)
    else:
        console.print(content_tree(content))


@app.command("diff")
def audit_diff(
    first: Annotated[str, typer.Argument(metavar="A", help=NAMED, show_default=False)],
    second: Annotated[str, typer.Argument(metavar="B", help=NAMED, show_default=False)],
    channel: Annotated[str | None, typer.Option(help="Of a target; default: promote.channel.")] = None,
    as_json: AsJson = False,
) -> None:
    """List every value in which two records differ, field by field."""
    from safegene.ledger.trace import diff_records, named_record

    ws = Workspace.find()
    ledger = _open(ws)
    a, b = (named_record(ledger, name, channel or ws.params.promote.channel) for name in (first, second))
    differences = diff_records(a, b)
    if as_json:
        write_json({"a": a.digest, "b": b.digest, "differences": [asdict(item) for item in differences]})
        return
    console.print(
        f"record {a.sequence} ({a.target}) and record {b.sequence} ({b.target}): {len(differences)} values differ"
    )
    for item in differences:
        console.print(f"[bold]{_plain(item.place)}[/]")
        for record, value in ((a, item.first), (b, item.second)):
            console.print(f"  {record.sequence}: {_plain(value)}", soft_wrap=True)


@app.command("blast")
def audit_blast(
    name: Annotated[
        str,
        typer.Argument(
            metavar="VECTOR|DATASET|JUDGE|KEY",
            help="A digest or a key id, at least 8 digits of it, or a data set such as prompts/gate.jsonl.",
            show_default=False,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """List every record, and every live target, that a vector, data set, judge, checkpoint or key touched."""
    from safegene.ledger.blast import blast_radius

    radius = blast_radius(_open(Workspace.find()), name)
    if as_json:
        write_json(radius.to_json())
        return
    drawn = table("sequence", "outcome", "target", "channel", "live", "named in")
    for row in radius.to_json()["records"]:
        shown = (row["sequence"], row["outcome"], row["target"], row["channel"], "yes" if row["live"] else "no")
        drawn.add_row(*(_plain(value) for value in (*shown, ", ".join(row["places"]))))
    console.print(drawn)
    _print_unread(radius.unread)
    if radius.revoked:
        console.print(f"[yellow]revoked[/] {escape(radius.revoked)}", soft_wrap=True)
    names = ", ".join(f"{one.record.target} on {one.record.channel}" for one in radius.live) or "nothing"
    console.print(f"{counted(len(radius.touched), 'record')} touched; live: {escape(names)}", soft_wrap=True)


@app.command("history")
def audit_history(target: Target, as_json: AsJson = False) -> None:
    """List every attempt on a target, with refused ones, newest first."""
    from safegene.ledger.trace import history

    rows = history(_open(Workspace.find()), target)
    if as_json:
        write_json({"target": target, "records": [asdict(row) for row in rows]})
        return
    if not rows:
        console.print(f"{target} has no record yet")
        return
    drawn = table(*(field.name for field in fields(rows[0])))
    for row in rows:
        cells = (*astuple(row)[:-1], "yes" if row.live else "no")
        drawn.add_row(*(escape(visible(str(cell))) for cell in cells))
    console.print(drawn)


@app.command("reuse")
def audit_reuse(as_json: AsJson = False) -> None:
    """List every safety vector: the targets that it repaired, their rates, and the cost of one more target."""
    from safegene.report.reuse import plain, reuse
    from safegene.report.reuse import table as vector_table

    vectors = reuse(Workspace.find())
    if as_json:
        write_json({"vectors": plain(vectors)})
        return
    if not vectors:
        console.print("there is no safety vector yet, neither in the workspace nor in the ledger")
    for vector in vectors:
        console.print(vector_table(vector))


@app.command("revoke")
def audit_revoke(
    digest: Annotated[str, typer.Argument(help="Of a vector, checkpoint, dataset, judge, candidate or release.")],
    reason: Annotated[str, typer.Option(help="Why; it goes into the record.")],
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Roll each affected target back to its newest release that is sound.")
    ] = False,
) -> None:
    """Record that a digest must not be relied on, and name every live release that rests on it."""
    from safegene.pipeline.stages.promote import revoke, roll_back_revoked

    if not reason.strip() or not reason.isprintable():
        raise ParamsError(f"expected a reason in printable words, got {reason.encode(errors='replace')!r}")
    ws = Workspace.find()
    with ledger_committed(ws, f"revoke {digest}"):
        revocation = revoke(ws, digest, reason, run=manual_run(ws))
        console.print(f"revoked {digest}, record {revocation.record.digest}", soft_wrap=True)
        _print_unread(revocation.unread)
        done = roll_back_revoked(ws, revocation, run=manual_run(ws)) if rollback else ()
        for one in done:
            tone = "red" if one.failed else "green" if one.restored else "yellow"
            console.print(f"[{tone}]affected[/] {escape(one.message)}", soft_wrap=True)
        for live, out in zip(revocation.affected, revocation.ways_out, strict=True) if not rollback else ():
            what = f"{live.record.target} is live on {live.record.channel} and rests on it; {out}"
            console.print(f"[red]affected[/] {escape(what)}", soft_wrap=True)
    if rollback and (revocation.unread or any(one.failed for one in done)):
        raise typer.Exit(1)


def _open(ws: Workspace) -> "Ledger":
    """The workspace's ledger, read from its store without a cache."""
    from safegene.ledger.chain import open_ledger

    return open_ledger(ws.params.promote, ws.root)


def _print_unread(errors: Sequence[str]) -> None:
    for error in errors:
        console.print(f"[yellow]not checked[/] {escape(error)}", soft_wrap=True)


def _plain(value: object) -> str:
    """A value for a cell of a table: plain JSON, hidden characters by name."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return escape(visible(text))
