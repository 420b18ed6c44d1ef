"""``safegene site ...``, and ``safegene report``: the pages on a workspace."""

from contextlib import suppress
from typing import Annotated

import typer

from safegene.cli.console import console
from safegene.workspace.layout import Workspace

app = typer.Typer(no_args_is_help=True, help="Write the report's pages, or serve them on this machine.")


@app.callback()
def group() -> None:
    """Write the report's pages, or serve them on this machine."""


def report() -> None:
    """Write the report: an overview of all targets and a page for each. The same as `safegene site build`."""
    from safegene.report import write_report

    console.print(str(write_report(Workspace.find())), soft_wrap=True)


app.command("build", help="Write the overview and a page for each target; draw only what changed.")(report)


@app.command("serve")
def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 for any that is free.")] = 8321,
) -> None:
    """Write the pages, then serve them on 127.0.0.1 until interrupted."""
    from safegene.report.server import HOST, site_server
    from safegene.report.site import write_site

    with site_server(write_site(Workspace.find()), port) as server:
        console.print(f"http://{HOST}:{server.server_address[1]}/", soft_wrap=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
