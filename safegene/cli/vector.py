"""``safegene vector ...``: publish the safety vector of a workspace, and look at published ones."""

from typing import Annotated

import typer

from safegene.cli.console import AsJson, console, write_json
from safegene.workspace.layout import Workspace

app = typer.Typer(no_args_is_help=True, help="Publish a safety vector for others, or look at one.")


@app.callback()
def group() -> None:
    """Publish a safety vector for others, or look at one."""


@app.command("publish")
def publish(
    target_uri: Annotated[
        str, typer.Argument(help="A new folder, s3://bucket/prefix or hf://org/name.", show_default=False)
    ],
    licence: Annotated[
        str | None, typer.Option("--licence", "--license", help="Licence of the vector; default: record.licence.")
    ] = None,
    disclose: Annotated[
        bool, typer.Option("--disclose", help="Publish receipts that name places of yours, such as a judge's URL.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the vector, its layer selection, receipts and card to a place from which others fetch it, signed."""
    from dataclasses import asdict

    from safegene.pipeline.publish import publish_vector

    done = publish_vector(Workspace.find(), target_uri, licence=licence, disclose=disclose)
    if as_json:
        write_json(asdict(done))
        return
    console.print(f"published {done.vector} with the measured rates of {done.targets} fine-tunes", soft_wrap=True)
    console.print("whoever uses it sets, in params.yaml:", soft_wrap=True)
    console.print(f"family:\n  vector: {done.uri}\n  publisher: {done.publisher}", soft_wrap=True)


@app.command("show")
def show(
    uri: Annotated[str, typer.Argument(help="A folder, s3://bucket/prefix or hf://org/name.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Say what a published vector is, who signed it and what it did, before its key is pinned. Nothing is fetched."""
    from rich.markup import escape

    from safegene.checkpoints.sources.uri import as_uri
    from safegene.ledger.bundle_source import look_at_bundle
    from safegene.text import counted, percent, visible

    bundle, digest = look_at_bundle(as_uri(uri))
    if as_json:
        write_json({"digest": digest, **bundle.model_dump(mode="json", by_alias=True)})
        return
    facts = {
        "publisher": f"{bundle.publisher['keyid']} (whose key that is, ask the publisher)",
        "licence": bundle.licence,
        "aligned model": f"{bundle.aligned} {bundle.base_model}".strip(),
        "vector": bundle.vector,
        "bundle": digest,
        "made by": f"safegene {bundle.safegene}, from {counted(len(bundle.shots), 'prompt set')}",
        "size": f"{sum(file.bytes for file in bundle.files.values()) / 1e6:.1f} MB",
    }
    for name, value in facts.items():
        console.print(f"{name:<14} {escape(visible(value))}", soft_wrap=True)
    for one in bundle.effect:
        rates = one.rates.get("hrr", {})
        words = (f"{arm} {percent(rates[arm].rate)}" for arm in ("before", "after", "aligned") if arm in rates)
        console.print(f"{one.target:<14} {one.outcome}; harmful responses: {', '.join(words)}", soft_wrap=True)
