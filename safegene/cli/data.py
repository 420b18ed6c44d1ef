"""``safegene data ...``: own sets in any columns, and the prompt and task sets of a workspace made from suites."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from safegene.cli.console import console
from safegene.datasets.prompts import Prompt
from safegene.errors import ParamsError
from safegene.text import counted, visible
from safegene.workspace.layout import Workspace

app = typer.Typer(no_args_is_help=True, help="Prompt and task sets from own and public data: docs/data.md.")


@app.command("add")
def data_add(
    source: Annotated[str, typer.Argument(help="CSV, TSV, JSON lines or Parquet: a file, or a URI as in `suite add`.")],
    name: Annotated[str, typer.Option(help="Name of the suite; by default the file's.")] = "",
    maps: Annotated[
        list[str] | None,
        typer.Option("--map", help="FIELD=COLUMN; a column of a field's own name needs none; repeatable."),
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="KIND of every row, or VALUE=KIND for the values of its column; repeatable."),
    ] = None,
    category: Annotated[str, typer.Option(help="Category of rows without one; by default the suite's name.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the set.")] = "own data, not published",
    origin: Annotated[str, typer.Option("--from", help="Where the file comes from, for a set of others.")] = "",
    replace: Annotated[bool, typer.Option(help="Write over a suite of that name.")] = False,
) -> None:
    """Read a set of your own into data/suites/NAME; ids, behaviours and categories are filled in.

    The fields are prompt, kind, category, behaviour, id and, of a task, response.
    """
    from safegene.datasets.own_format import OwnSet, add_own, parse_columns

    columns = parse_columns(maps or [], kind or [], category)
    request = OwnSet(source, columns, name=name, licence=licence, origin=origin, replace=replace)
    card = add_own(Workspace.find(), request).card
    counts = ", ".join(f"{count} {kind}" for kind, count in card.rows.items())
    console.print(f"data/suites/{card.name}: {counts}", soft_wrap=True, markup=False)
    for reason, count in card.left_out.items():
        console.print(f"  left out {count}: {visible(reason)}", soft_wrap=True, markup=False)
    console.print("next: [bold]safegene data split[/], once every set is added")


@app.command("split")
def data_split(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names of suites; all suites when none.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed, another division.")] = 0,
    degrade: Annotated[float, typer.Option(help="Share of the harmful behaviours that train the surrogates.")] = 0.04,
    fit: Annotated[float, typer.Option(help="Share of the behaviours, and of a task's rows, for fitting.")] = 0.2,
    validation: Annotated[float, typer.Option(help="Share by which calibrate chooses.")] = 0.04,
    templates: Annotated[str, typer.Option("--wrap", help="File of wrappers for the gate, not the shipped ones.")] = "",
    per_behaviour: Annotated[int, typer.Option(help="Wrappers for each harmful behaviour of the gate.")] = 1,
    pool: Annotated[float, typer.Option(help="Share that only the pool of mining gets.")] = 0.08,
    keep: Annotated[list[str] | None, typer.Option(help="degrade, safety, pool or gate: leave it; repeatable.")] = None,
    replace: Annotated[bool, typer.Option(help="Write over sets that were written by hand.")] = False,
) -> None:
    """Divide suites by behaviour into the degrade, safety, pool and gate sets; of a task suite, make its task set.

    The gate gets what the shares leave. Same suites, same seed: same files.
    """
    from safegene.datasets.division import SplitOptions
    from safegene.datasets.pool_templates import shipped_wrappers
    from safegene.datasets.splitting import own_wrappers, split_suites

    wrappers = own_wrappers(templates) if templates else shipped_wrappers("test")
    options = SplitOptions(seed, degrade, fit, validation, wrappers, per_behaviour, pool)
    made = split_suites(Workspace.find(), names or [], options, keep=keep or (), replace=replace)
    table = Table("file", "rows", "behaviours")
    for path, rows in sorted(made.rows.items()):
        table.add_row(escape(f"data/{path}"), _counts(rows), str(len({row.behaviour for row in rows} - {""})))
    console.print(table)
    for reason, count in made.left_out.items():
        console.print(f"left out of the gate: {counted(count, 'behaviour')}, {reason}", soft_wrap=True, markup=False)
    if made.pool_left_out:
        reason = "in the words of the gate or of the validation split"
        console.print(f"left out of the pool: {counted(made.pool_left_out, 'prompt')}, {reason}", soft_wrap=True)
    harmful = 1 - degrade - fit - validation - pool
    _show_needs(Workspace.find(), {"harmful": harmful, "lookalike": harmful + degrade, "task": 1 - fit - validation})


def _show_needs(ws: Workspace, shares: Mapping[str, float]) -> None:
    """What a pass needs beside what the gate has, as `safegene plan` says it, and the next command.

    Args:
        ws: the workspace.
        shares: kind -> the part of its behaviours that the gate gets.
    """
    from safegene.cli.start import need_lines
    from safegene.pipeline.planning.needs import needs_of, shortages

    if not (ws.prompts / "gate.jsonl").is_file():
        console.print("next: [bold]safegene validate[/]")
        return
    found = needs_of(ws, anew=True)
    console.print("what a pass needs, beside what the gate has:")
    for line in need_lines(found):
        console.print(line, soft_wrap=True)
    short = {kind: some[0].missing for kind, some in shortages(found).items()}
    console.print(
        "next: [bold]safegene validate[/]" + ("; these sets can refuse a candidate, not pass one" * bool(short))
    )
    more = [f"{-(-count // shares[kind]):.0f} {kind}" for kind, count in short.items() if shares.get(kind, 0) > 0]
    if more:
        rows = f"about {', '.join(more)} rows more by `safegene data add`"
        console.print(f"  for a pass: {rows}, then divide again", soft_wrap=True, markup=False)


@app.command("schema")
def data_schema(
    name: Annotated[
        str, typer.Argument(help="degrade, safety, pool, gate or task: the stricter schema of that set.")
    ] = "",
) -> None:
    """Print the JSON schema of a row."""
    from safegene.datasets.set_rules import RULES, row_schema

    if name and name not in RULES:
        raise ParamsError(f"expected a set of {', '.join(RULES)}, got {name!r}")
    typer.echo(json.dumps(row_schema(name), indent=2))


def _counts(rows: Sequence[Prompt]) -> str:
    """Rows by kind and split, or by pool."""
    counts = Counter(row.pool or f"{row.kind} {row.split}" for row in rows)
    return ", ".join(f"{count} {name}" for name, count in counts.items())
