"""``safegene vector ...``: publish the safety vector of a workspace."""

from typing import Annotated

import typer

from safegene.cli.console import AsJson, console, write_json
from safegene.workspace.layout import Workspace

app = typer.Typer(no_args_is_help=True, help="Publish the safety vector of a workspace for others.")


@app.callback()
def group() -> None:
    """Publish the safety vector of a workspace for others."""


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
