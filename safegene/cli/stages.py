"""One command for each stage of the pipeline that DVC tracks."""

import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress

import typer

from safegene.cli.console import Target, console
from safegene.errors import SafegeneError
from safegene.pipeline.process import PARENT
from safegene.pipeline.runner import run_stage
from safegene.pipeline.table import PIPELINE, Stage, pipeline_of
from safegene.workspace.layout import Workspace


def add_to(app: typer.Typer, *, skip: Collection[str]) -> None:
    """Add a command for every tracked stage, except those named in ``skip``, which are groups."""
    for stage in PIPELINE:
        if stage.tracked and stage.name not in skip:
            text = f"Run the stage {stage.name!r} directly, up to date or not; `safegene run` runs it through DVC."
            app.command(stage.name, help=text, rich_help_panel="Stages")(_command(stage))


def _command(stage: Stage) -> Callable[..., None]:
    def run_family() -> None:
        run_directly(stage)

    def run_target(target: Target) -> None:
        run_directly(stage, target)

    return run_target if stage.per_target else run_family


def run_directly(stage: Stage, target: str = "") -> None:
    """Run a stage, and where a person asked for it, say which earlier stages are out of date, and what it wrote."""
    ws = Workspace.find()
    if any(name in os.environ for name in (PARENT, "DVC_STAGE")):  # of a run, which says these things itself
        run_stage(stage, ws, target)
        return
    if stale := _stale_before(stage, ws, target):
        said = f"{', '.join(stale)}: out of date, so {stage.address(target)} reads what they wrote before"
        console.print(f"[yellow]note[/] {said}; `safegene run` runs them first", soft_wrap=True)
    begun = time.monotonic()
    manifest = run_stage(stage, ws, target)
    if manifest is not None:
        took = f"in {time.monotonic() - begun:.1f} s"
        digest = manifest.digest.removeprefix("sha256:")[:12]
        console.print(
            f"{stage.address(target)}: wrote {stage.output.format(target=target)} ({digest}) {took}", soft_wrap=True
        )
        console.print(
            "next: [bold]safegene run[/], which runs it again where DVC does not know this result", soft_wrap=True
        )


def _stale_before(stage: Stage, ws: Workspace, target: str) -> list[str]:
    """Addresses of the earlier stages that a run would run first; none where DVC cannot say."""
    from safegene.pipeline.foresee import stages_to_run

    names = [one.name for one in pipeline_of(ws.params)]
    if stage.name not in names or not (ws.root / "dvc.lock").is_file() or target not in ("", *ws.targets.targets):
        return []
    earlier = set(names[: names.index(stage.name)])
    with suppress(SafegeneError):
        return [at for at in stages_to_run(ws, [target] if target else [])[target] if at.partition("@")[0] in earlier]
    return []
