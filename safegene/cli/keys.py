"""``safegene keys ...``: the signing keys of this user."""

from typing import Annotated

import typer

from safegene.cli.console import console, write_json

app = typer.Typer(no_args_is_help=True, help="Signing keys, kept outside every repository.")

Key = Annotated[
    str,
    typer.Argument(
        help="A key id (8 characters or more) of this user, or a file: a public key as PEM, or as `show` prints it.",
        show_default=False,
    ),
]


@app.command("create")
def create(
    scheme: Annotated[str, typer.Option(help="ed25519, or ecdsa-sha2-nistp256.")] = "ed25519",
) -> None:
    """Make a signing key outside every repository, and print its id."""
    from safegene.ledger import create_key

    console.print(create_key(scheme=scheme))


@app.command("list")
def show_all() -> None:
    """List the keys of this user."""
    from safegene.ledger import key_ids

    for key in key_ids():
        console.print(key)


@app.command("show")
def show(key: Key) -> None:
    """Print the public half of a key (JSON), for the person who pins it."""
    from safegene.ledger.keys import public_key
    from safegene.ledger.pins import key_to_json

    write_json(key_to_json(public_key(key)))
