"""``safegene suite ...``: public sets as evaluation suites, with source, licence and digests."""

from collections.abc import Mapping
from typing import Annotated, cast, get_args

import typer
from rich.markup import escape

from safegene.cli.console import AsJson, console, table, write_json
from safegene.datasets.prompts import Kind, Split
from safegene.errors import ParamsError, SafegeneError
from safegene.text import counted, visible
from safegene.workspace.layout import Workspace

app = typer.Typer(no_args_is_help=True, help="Evaluation suites: public sets of prompts, read strictly and pinned.")
Names = Annotated[list[str] | None, typer.Argument(help="Names of suites; all suites when none.", show_default=False)]


@app.command("add")
def suite_add(
    name: Annotated[str, typer.Argument(help="Name of the new suite, written to data/suites/NAME.")],
    source: Annotated[
        str, typer.Argument(help="File, folder, hf://datasets/ORG/NAME[@REVISION]/FILE or s3://BUCKET/KEY.")
    ],
    suite_format: Annotated[
        str, typer.Option("--format", help="Format of the set; `safegene suite formats` lists them.")
    ],
    licence: Annotated[str, typer.Option(help="Licence, as the set's authors state it. Required.")] = "",
    origin: Annotated[str, typer.Option("--from", help="URL that a local file comes from.")] = "",
    version: Annotated[str, typer.Option(help="Version of the set.")] = "1",
    split: Annotated[str, typer.Option(help="Split of every row: fit, validation or test.")] = "test",
    language: Annotated[
        list[str] | None, typer.Option(help="Language column of MultiJail to read; repeatable.")
    ] = None,
    without: Annotated[list[str] | None, typer.Option(help="Category to leave out; repeatable.")] = None,
    translation: Annotated[
        list[str] | None, typer.Option(help="LANGUAGE=FILE: the same set in another language; repeatable.")
    ] = None,
    templates: Annotated[str, typer.Option("--wrap", help="File of jailbreak templates.")] = "",
    per_behaviour: Annotated[int, typer.Option(help="Number of templates for each harmful behaviour.")] = 1,
    sha256: Annotated[str, typer.Option(help="Expected digest of the file: sha256:<64 hex>.")] = "",
) -> None:
    """Read a public set into data/suites/NAME. Rows that are left out are counted with their reason."""
    from safegene.datasets.adding import SuiteRequest, add_suite
    from safegene.datasets.suites import LoadOptions

    if split not in get_args(Split):
        raise ParamsError(f"expected a split of {', '.join(get_args(Split))}, got {split!r}")
    ws = Workspace.find()
    longest = ws.params.validate_.max_prompt_characters
    options = LoadOptions(cast(Split, split), tuple(language or ()), tuple(without or ()), longest)
    request = SuiteRequest(
        name=name,
        source=source,
        format=suite_format,
        licence=licence,
        origin=origin,
        version=version,
        options=options,
        templates=templates,
        per_behaviour=per_behaviour,
        translations=_pairs(translation or []),
        sha256=sha256,
    )
    card = add_suite(ws, request).card
    console.print(f"{name}: {_counts(card.rows)}, {card.licence}, from {card.source}", soft_wrap=True, markup=False)
    for reason, count in card.left_out.items():
        console.print(f"  left out {count}: {visible(reason)}", soft_wrap=True, markup=False)
    for transform in card.transforms:
        for reason, count in transform.left_out.items():
            console.print(f"  {transform.kind}, left out {count}: {visible(reason)}", soft_wrap=True, markup=False)


@app.command("formats")
def suite_formats(as_json: AsJson = False) -> None:
    """List the formats for --format, with the licence that each set's authors state."""
    from safegene.datasets.suites import SUITE_FORMATS

    if as_json:
        every = [(name, SUITE_FORMATS[name]) for name in SUITE_FORMATS]
        rows = [{"name": name, "files": [*one.files], "licence": one.licence} for name, one in every]
        write_json({"formats": rows})
        return
    drawn = table("format", "published file", "licence")
    for name in SUITE_FORMATS:
        known = SUITE_FORMATS[name]
        drawn.add_row(*(escape(visible(cell)) for cell in (name, " or ".join(known.files), known.licence)))
    console.print(drawn)


@app.command("list")
def suite_list(as_json: AsJson = False) -> None:
    """List the workspace's suites, each verified. Exit 1 when one is broken."""
    from safegene.datasets.suite_library import suite_folder, suite_names
    from safegene.datasets.suites import read_suite

    ws = Workspace.find()
    drawn = table("suite", "rows", "licence", "source", "digest")
    plain, broken = list[dict[str, object]](), dict[str, str]()
    for name in suite_names(ws):
        try:
            suite = read_suite(suite_folder(ws, name))
        except SafegeneError as error:
            broken[name] = error.message
            continue
        card = suite.card
        plain.append(
            {"name": name, "digest": suite.digest, "rows": card.rows, "licence": card.licence, "source": card.source}
        )
        cells = (name, _counts(card.rows), card.licence, card.source, suite.digest[:19])
        drawn.add_row(*(escape(visible(cell)) for cell in cells))
    if as_json:
        write_json({"suites": plain, "broken": broken})
    else:
        if plain or not broken:
            console.print(drawn if plain else "no suites; add one with `safegene suite add`")
        for name, why in broken.items():
            console.print(f"[red]broken[/] {escape(visible(name))}: {escape(visible(why))}", soft_wrap=True)
    if broken:
        raise typer.Exit(1)


@app.command("validate")
def suite_validate(names: Names = None, as_json: AsJson = False) -> None:
    """Check suites against their cards, their expectations, and the prompts used in fitting."""
    from safegene.datasets.suite_library import check_suites

    suites = [*check_suites(Workspace.find(), names or [])]
    if as_json:
        rows = [
            {"name": one.suite.card.name, "digest": one.suite.digest, "expectations": one.expectations}
            for one in suites
        ]
        write_json({"suites": rows})
        return
    for checked in suites:
        card = checked.suite.card
        summary = f"{card.name}: {_counts(card.rows)}, {checked.expectations} expectations hold, unseen in fitting"
        console.print(f"{summary}, {checked.suite.digest}", soft_wrap=True, markup=False)


@app.command("use")
def suite_use(
    names: Annotated[
        list[str], typer.Argument(help="Names of suites; of repeated behaviours the first is kept.", show_default=False)
    ],
    replace: Annotated[bool, typer.Option(help="Write over a gate set that was written by hand.")] = False,
) -> None:
    """Write the test rows of suites as the gate's prompt set, data/prompts/gate.jsonl."""
    from safegene.datasets.suite_library import use_suites

    gate_set = use_suites(Workspace.find(), names, replace=replace)
    console.print(f"{gate_set.path}: {counted(len(gate_set.rows), 'prompt')}", soft_wrap=True, markup=False)
    for name, count in gate_set.left_out.items():
        if count:
            console.print(f"  {name}: left out {count}, asked in the same words by an earlier suite", markup=False)
    console.print("next: [bold]safegene validate[/], which checks the new gate set")


def _pairs(texts: list[str]) -> dict[str, str]:
    """Language -> file, from texts of the form LANGUAGE=FILE.

    Raises:
        ParamsError: a text has another form, or a language occurs twice.
    """
    files: dict[str, str] = {}
    for text in texts:
        language, _, place = text.partition("=")
        if not language or not place or language in files:
            raise ParamsError(f"expected LANGUAGE=FILE, each language once, got {text!r}")
        files[language] = place
    return files


def _counts(rows: Mapping[Kind, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in rows.items())
