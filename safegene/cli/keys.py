"""``safegene keys ...``: the signing keys of this user."""

import typer

from safegene.cli.console import console

app = typer.Typer(no_args_is_help=True, help="Signing keys, kept outside every repository.")


@app.command("create")
def create() -> None:
    """Make an ed25519 signing key outside every repository."""
    from safegene.ledger import create_key

    console.print(create_key())


@app.command("list")
def show() -> None:
    """List the keys of this user."""
    from safegene.ledger import key_ids

    for key in key_ids():
        console.print(key)
