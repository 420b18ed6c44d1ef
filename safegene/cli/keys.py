"""``safegene keys ...``: the signing keys of this user."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from safegene.cli.console import AsJson, console, manual_run, write_json
from safegene.errors import ParamsError
from safegene.workspace.layout import Workspace

if TYPE_CHECKING:
    from safegene.ledger.record import Record

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
def show_all(as_json: AsJson = False) -> None:
    """List the keys of this user."""
    from safegene.ledger import key_ids

    if as_json:
        write_json({"keys": [*key_ids()]})
        return
    for key in key_ids():
        console.print(key)


@app.command("show")
def show(key: Key) -> None:
    """Print the public half of a key (JSON), for the person who pins it."""
    from safegene.ledger.keys import public_key
    from safegene.ledger.pins import key_to_json

    write_json(key_to_json(public_key(key)))


@app.command("pin")
def pin(
    key: Key,
    owner: Annotated[
        str | None, typer.Option(help="The person whose key it is, such as 'Ada <ada@example.org>'.")
    ] = None,
    approver: Annotated[bool, typer.Option("--approver", help="It may approve what others promote.")] = False,
) -> None:
    """Trust a key from now on, by a record that a pinned key signs; or name the owner of a pinned key."""
    from safegene.pipeline.keys import pin as pin_key

    ws = Workspace.find()
    _say(ws, pin_key(ws, key, owner=owner, approver=approver, run=manual_run(ws)))


@app.command("rotate")
def rotate(
    to: Annotated[str | None, typer.Option(help="The new key: an id or a file; default: a new key is made.")] = None,
) -> None:
    """Pin a new key in the place of the one that signs here; what the old one signed stays trusted."""
    from safegene.pipeline.keys import rotate as rotate_key

    ws = Workspace.find()
    _say(ws, rotate_key(ws, to=to, run=manual_run(ws)))


@app.command("require")
def require(
    count: Annotated[int, typer.Argument(min=1, max=9, help="Signatures of different persons.", show_default=False)],
) -> None:
    """Pin how many signatures of different persons a promotion needs from now on."""
    from safegene.pipeline.keys import require as require_count

    ws = Workspace.find()
    _say(ws, require_count(ws, count, run=manual_run(ws)))


@app.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(help="Id of a pinned key, 8 characters or more.", show_default=False)],
    reason: Annotated[str, typer.Option(help="Why; it goes into the record.")],
    since: Annotated[
        str | None, typer.Option(help="First record that is not trusted: its number or digest. Default: from now on.")
    ] = None,
) -> None:
    """Trust a key no more, from a record on; name the records that it signed since."""
    from safegene.pipeline.keys import revoke as revoke_key

    if not reason.strip() or not reason.isprintable():
        raise ParamsError(f"expected a reason in printable words, got {reason.encode(errors='replace')!r}")
    ws = Workspace.find()
    record, touched = revoke_key(ws, key, reason, since=since, run=manual_run(ws))
    _say(ws, record)
    for each in touched:
        what = f"record {each.sequence}: {each.outcome} for {each.target} on {each.channel}"
        console.print(f"[red]no longer trusted[/] {escape(what)}", soft_wrap=True)


def _say(ws: Workspace, record: "Record") -> None:
    params = ws.params.promote
    here = "" if "://" in params.ledger else f" and {params.ledger}"
    console.print(
        f"{escape(record.reason)}: record {record.sequence}; commit {params.public_key}{here}", soft_wrap=True
    )
