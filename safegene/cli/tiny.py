"""``safegene tiny ...``: the models of the tiny family."""

from typing import Annotated

import typer

from safegene.cli.console import console

app = typer.Typer(no_args_is_help=True, help="The tiny model family of the demo and the tests.")


@app.command("build")
def build(
    name: Annotated[str, typer.Argument(help="base, aligned, sentiment, topic, group or adversarial.")],
    seed: Annotated[int, typer.Option(help="The family's seed.")] = 0,
) -> None:
    """Build a model of the tiny family, or find it in the cache, and print its folder."""
    from safegene.tiny.build import build as build_model

    console.print(str(build_model(name, seed)), soft_wrap=True)
