"""``safegene suite ...``: public sets as gate suites, with their source, licence and digests."""

from collections.abc import Mapping
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from safegene.cli.console import AsJson, console, write_json
from safegene.datasets.prompts import Kind, Split
from safegene.datasets.suites import SUITE_FORMATS, LoadOptions, read_suite
from safegene.errors import ParamsError, SafegeneError
from safegene.text import visible
from safegene.workspace.layout import Workspace

app = typer.Typer(no_args_is_help=True, help="Evaluation suites: public sets, read strictly, with their papers.")
SPLITS: dict[str, Split] = {"fit": "fit", "validation": "validation", "test": "test"}
Names = Annotated[list[str] | None, typer.Argument(help="Suites (default: all).", show_default=False)]


@app.command("add")
def suite_add(
    name: Annotated[str, typer.Argument(help="Of the new suite: data/suites/NAME.")],
    source: Annotated[
        str, typer.Argument(help="File, folder, hf://datasets/ORG/NAME[@REVISION]/FILE, s3://BUCKET/KEY.")
    ],
    form: Annotated[str, typer.Option("--format", help=f"One of {', '.join(SUITE_FORMATS)}.")],
    licence: Annotated[str, typer.Option(help="As the set's authors state it; there is no suite without.")] = "",
    origin: Annotated[str, typer.Option("--from", help="Where a local file comes from (URL).")] = "",
    version: Annotated[str, typer.Option(help="Of the set.")] = "1",
    split: Annotated[str, typer.Option(help="Of every row: fit, validation or test.")] = "test",
    language: Annotated[list[str] | None, typer.Option(help="Columns of MultiJail; again for another.")] = None,
    without: Annotated[list[str] | None, typer.Option(help="A category to leave out; again for another.")] = None,
    translation: Annotated[list[str] | None, typer.Option(help="LANGUAGE=FILE: the same set, row by row.")] = None,
    templates: Annotated[str, typer.Option("--wrap", help="File of jailbreak templates.")] = "",
    per_behaviour: Annotated[int, typer.Option(help="Templates for each harmful behaviour.")] = 1,
    sha256: Annotated[str, typer.Option(help="What the file must be: sha256:<64 hex>.")] = "",
) -> None:
    """Read a public set into data/suites/NAME; rows left out are counted with their reasons."""
    from safegene.datasets.library import SuiteRequest, add_suite

    if split not in SPLITS:
        raise ParamsError(f"expected a split of {', '.join(SPLITS)}, got {split!r}")
    ws = Workspace.find()
    longest = ws.params.validate_.max_prompt_characters
    options = LoadOptions(SPLITS[split], tuple(language or ()), tuple(without or ()), longest)
    request = SuiteRequest(
        name=name,
        source=source,
        format=form,
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
    console.print(f"{name}: {_numbers(card.rows)}, {card.licence}, from {card.source}", soft_wrap=True, markup=False)
    for reason, count in card.left_out.items():
        console.print(f"  left out {count}: {visible(reason)}", soft_wrap=True, markup=False)
    for one in card.transforms:
        for reason, count in one.left_out.items():
            console.print(f"  {one.kind}, left out {count}: {visible(reason)}", soft_wrap=True, markup=False)


@app.command("list")
def suite_list(as_json: AsJson = False) -> None:
    """The suites of the workspace, each verified; one that does not hold says why. Exit 1 when one does not."""
    from safegene.datasets.library import folder_of, suite_names

    ws = Workspace.find()
    table = Table("suite", "rows", "licence", "source", "digest")
    plain, broken = list[dict[str, object]](), dict[str, str]()
    for name in suite_names(ws):
        try:
            suite = read_suite(folder_of(ws, name))
        except SafegeneError as error:
            broken[name] = error.message
            continue
        card = suite.card
        plain.append(
            {"name": name, "digest": suite.digest, "rows": card.rows, "licence": card.licence, "source": card.source}
        )
        cells = (name, _numbers(card.rows), card.licence, card.source, suite.digest[:19])
        table.add_row(*(escape(visible(cell)) for cell in cells))
    if as_json:
        write_json({"suites": plain, "broken": broken})
    else:
        if plain or not broken:
            console.print(table if plain else "no suite yet: `safegene suite add`")
        for name, why in broken.items():
            console.print(f"[red]broken[/] {escape(visible(name))}: {escape(visible(why))}", soft_wrap=True)
    if broken:
        raise typer.Exit(1)


@app.command("validate")
def suite_validate(names: Names = None) -> None:
    """Hold suites against their cards, their expectations, and everything that is fitted on in this workspace."""
    from safegene.datasets.library import check_suite

    for done in check_suite(Workspace.find(), names or []):
        card = done.suite.card
        said = f"{card.name}: {_numbers(card.rows)}, {done.rules} expectations hold, unseen in fitting"
        console.print(f"{said}, {done.suite.digest}", soft_wrap=True, markup=False)


@app.command("use")
def suite_use(
    names: Annotated[list[str], typer.Argument(help="Suites, the one whose rows are kept first.", show_default=False)],
) -> None:
    """Write the test rows of suites as data/prompts/gate.jsonl, which the gate asks; their digests go beside."""
    from safegene.datasets.library import use_suites

    done = use_suites(Workspace.find(), names)
    console.print(f"{done.path}: {len(done.rows)} prompts", soft_wrap=True, markup=False)
    for name, count in done.left_out.items():
        if count:
            console.print(f"  {name}: left out {count}, asked in the same words by an earlier suite", markup=False)
    console.print("next: [bold]safegene validate[/], which holds the whole set against the gate's rules")


def _pairs(given: list[str]) -> dict[str, str]:
    """LANGUAGE=FILE.

    Raises:
        ParamsError: another form, or a language twice.
    """
    found: dict[str, str] = {}
    for text in given:
        language, _, place = text.partition("=")
        if not language or not place or language in found:
            raise ParamsError(f"expected LANGUAGE=FILE, each language once, got {text!r}")
        found[language] = place
    return found


def _numbers(rows: Mapping[Kind, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in rows.items())
