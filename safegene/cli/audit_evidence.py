"""``safegene audit replay|pack|export``: what an auditor makes from a record."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from safegene.cli.console import AsJson, console, table, write_json
from safegene.text import counted, redact
from safegene.workspace.atomic import write_file
from safegene.workspace.layout import Workspace

if TYPE_CHECKING:
    from safegene.ledger.chain import Ledger

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
        drawn = table("artefact", "recorded", "made again", "")
        for one in result.artefacts:
            word = "[green]same[/]" if one.same else "[red]differs[/]" if one.recorded else "not recorded"
            drawn.add_row(one.name, one.recorded[7:27], one.rebuilt[7:27], word)
        console.print(drawn)
        for one in result.artefacts:
            if one.differs_in:
                console.print(f"{one.name} differs in {escape(', '.join(one.differs_in))}", soft_wrap=True)
        found = "the same digests" if result.same else "[red]other digests[/]"
        number, commit = result.record.sequence, result.commit[:12]
        console.print(f"record {number}, made again at commit {commit}: {found} for {', '.join(COMPARED)}")
    if not result.same:
        raise typer.Exit(1)


def audit_pack(
    name: Record,
    out: Annotated[Path, typer.Option(help="A new or empty folder.", show_default=False)],
    channel: Annotated[str | None, typer.Option(help="Of a target; default: promote.channel.")] = None,
) -> None:
    """Write the evidence of a record, mapped to clauses of laws and standards, with what is missing (HTML and JSON)."""
    from safegene.report.pack import write_pack

    page = write_pack(Workspace.find(), name, out, channel=channel)
    console.print(f"{page}", soft_wrap=True)


export_app = typer.Typer(no_args_is_help=True, help="Write records in the formats of other tools.")
Out = Annotated[Path | None, typer.Option(help="A file to write; default: standard output.")]


@export_app.command("openlineage")
def export_openlineage(
    name: Annotated[
        str | None, typer.Argument(metavar="[RECORD|TARGET]", help=f"{NAMED} Default: every record.")
    ] = None,
    out: Out = None,
) -> None:
    """Write records as OpenLineage events, one JSON object a line."""
    from safegene.ledger.exports.openlineage import openlineage_events
    from safegene.ledger.trace import named_record

    ws, ledger = _open()
    place = ws.params.promote.ledger
    records = [named_record(ledger, name, ws.params.promote.channel)] if name else [*ledger.walk()][::-1]
    _write(openlineage_events(records, store=place), out)


@export_app.command("cyclonedx")
def export_cyclonedx(name: Record, out: Out = None) -> None:
    """Write a record as a CycloneDX 1.6 bill of materials with a model card (ML-BOM)."""
    from safegene.ledger.exports.cyclonedx import cyclonedx_bom
    from safegene.ledger.trace import named_record

    ws, ledger = _open()
    bom = cyclonedx_bom(named_record(ledger, name, ws.params.promote.channel))
    _write(json.dumps(bom, indent=2, allow_nan=False) + "\n", out)


@export_app.command("model-card")
def export_model_card(name: Record, out: Out = None) -> None:
    """Write the release of a record as a Hugging Face model card."""
    from safegene.ledger.exports.model_card import model_card
    from safegene.ledger.trace import named_record

    ws, ledger = _open()
    _write(model_card(named_record(ledger, name, ws.params.promote.channel), ledger.store) + "\n", out)


@export_app.command("gto")
def export_gto(
    target: Annotated[str | None, typer.Argument(help="Default: every target.")] = None,
    create: Annotated[
        bool, typer.Option("--create", help="Create the tags that the repository does not have.")
    ] = False,
) -> None:
    """Print releases and channels as GTO's Git tags: tag and commit, oldest first."""
    from safegene.ledger.exports.gto import adding_commits, create_tags, gto_tags

    ws, ledger = _open()
    chain = tuple(ledger.walk())
    tags = gto_tags(chain, target=target, commits=adding_commits(ws.root, ws.params.promote.ledger, chain))
    for tag in tags:
        sys.stdout.write(f"{tag.name} {tag.commit}\n")
    if create:
        created = create_tags(ws.root, tags)
        console.print(f"created {len(created)} tags; push them with `git push --tags`")


@export_app.command("mlflow")
def export_mlflow(
    to: Annotated[str, typer.Option(help="The tracking server, such as http://127.0.0.1:5000.", show_default=False)],
) -> None:
    """Register every release on an MLflow server: targets as models, releases as versions, channels as aliases."""
    from safegene.ledger.exports.mlflow import register, registry_versions

    _, ledger = _open()
    versions = registry_versions(tuple(ledger.walk()), store=ledger.store.uri)
    created = register(versions, to)
    console.print(
        f"{redact(to)} holds {counted(len(versions), 'release')}, {created} of them new", soft_wrap=True, markup=False
    )


def _open() -> "tuple[Workspace, Ledger]":
    """The workspace and its ledger, read from its store without a cache."""
    from safegene.ledger.chain import open_ledger

    ws = Workspace.find()
    return ws, open_ledger(ws.params.promote, ws.root)


def _write(text: str, out: Path | None) -> None:
    if out is None:
        sys.stdout.write(text)
        return
    write_file(out, text)
    console.print(f"{out}", soft_wrap=True)
