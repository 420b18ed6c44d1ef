"""One command for each stage of the pipeline that DVC tracks."""

from collections.abc import Callable, Collection

import typer

from safegene.cli.console import Target
from safegene.pipeline.runner import run_stage
from safegene.pipeline.table import PIPELINE, Stage
from safegene.workspace.layout import Workspace


def add_to(app: typer.Typer, *, skip: Collection[str]) -> None:
    """Add a command for every tracked stage, except those named in ``skip``, which are groups."""
    for stage in PIPELINE:
        if stage.tracked and stage.name not in skip:
            text = f"Run the stage {stage.name!r} directly, without DVC. `safegene run` runs it through DVC."
            app.command(stage.name, help=text, rich_help_panel="Stages")(_command(stage))


def _command(stage: Stage) -> Callable[..., None]:
    def run_family() -> None:
        run_stage(stage, Workspace.find())

    def run_target(target: Target) -> None:
        run_stage(stage, Workspace.find(), target)

    return run_target if stage.per_target else run_family
