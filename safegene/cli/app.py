"""The command ``safegene``: all commands and groups in the order of ``--help``, and the entry point.

A command imports what it needs when it runs, so that ``safegene --help`` imports no heavy library.
"""

from collections.abc import Callable
from typing import Annotated

import typer

from safegene.cli import (
    audit,
    data,
    gate,
    judge,
    keys,
    releases,
    serve,
    site,
    stages,
    start,
    suite,
    targets,
    tiny,
    vector,
    workspace,
)
from safegene.cli.console import console
from safegene.errors import as_safegene_error
from safegene.pipeline.process import (
    end_with_flow,
    keep_within_limits,
    open_standard_streams,
    report_error,
    show_progress,
)
from safegene.version import __version__

GROUPS = {
    "target": targets.app,
    "vector": vector.app,
    "gate": gate.app,
    "data": data.app,
    "suite": suite.app,
    "audit": audit.app,
    "site": site.app,
    "judge": judge.app,
    "tiny": tiny.app,
    "keys": keys.app,
}
BEFORE_STAGES: tuple[Callable[..., None], ...] = (
    start.init,
    start.doctor,
    start.plan,
    workspace.demo,
    workspace.run,
    workspace.status,
)
AFTER_STAGES: tuple[Callable[..., None], ...] = (
    releases.promote,
    releases.approve,
    releases.reject,
    releases.rollback,
    releases.resolve,
    releases.merge,
    releases.export,
    serve.serve_plan,
    site.report,
    workspace.diagnose,
    workspace.watch,
    workspace.drift,
    workspace.deploy,
)
DEBUG = {"on": False}
LICENCE = f"safegene {__version__}: Apache License 2.0 (Apache-2.0), https://www.apache.org/licenses/LICENSE-2.0"

app = typer.Typer(
    name="safegene",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    help="Re-align fine-tunes of open-weight language models, gate them statistically, and keep a signed ledger.",
)
for name, group in GROUPS.items():
    app.add_typer(group, name=name)
for command in BEFORE_STAGES:
    app.command()(command)
stages.add_to(app, skip=GROUPS)
for command in AFTER_STAGES:
    app.command()(command)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    licence: Annotated[bool, typer.Option("--license", "--licence", help="Print the licence and exit.")] = False,
) -> None:
    """Options of every command."""
    DEBUG["on"] = debug
    if version:
        console.print(__version__)
        raise typer.Exit
    if licence:
        console.print(LICENCE, soft_wrap=True)
        raise typer.Exit
    if context.invoked_subcommand is None:
        console.print(context.get_help())


def main() -> None:
    """Run the command line; an error is printed with its remedy and ends the process with its exit code.

    A reader of the output that goes away (``| head``) ends the command quietly, with exit code 1.
    """
    open_standard_streams()
    end_with_flow()
    keep_within_limits()
    try:
        show_progress()
        app(prog_name="safegene", standalone_mode=True)
    except Exception as raised:
        error = as_safegene_error(raised)
        report_error(error, trace=DEBUG["on"])
        raise SystemExit(error.exit_code) from None
