"""``safegene target ...``: the fine-tunes of a workspace."""

from typing import Annotated

import typer

from safegene.cli.console import AsJson, Target, console, table, write_json
from safegene.workspace.layout import Workspace

app = typer.Typer(no_args_is_help=True, help="The fine-tunes of a workspace (data/targets.yaml).")


@app.command("add")
def add(
    name: Target,
    source: Annotated[str, typer.Argument(help="A folder, org/model@revision of the Hub, s3://, or another URI.")],
    task: Annotated[str, typer.Option(help="Its task set: data/tasks/TASK.jsonl.")],
) -> None:
    """Add a fine-tune, pinned to what its source holds now."""
    from safegene.pipeline.init import add_target

    entry = add_target(Workspace.find(), name, source, task)
    console.print(f"{name}: {entry.source} at {entry.fingerprint}", soft_wrap=True)


@app.command("remove")
def remove(name: Target) -> None:
    """Remove a fine-tune; what is live for it stays live."""
    from safegene.pipeline.init import remove_target

    remove_target(Workspace.find(), name)


@app.command("list")
def show(as_json: AsJson = False) -> None:
    """List the fine-tunes with their sources and tasks."""
    entries = sorted(Workspace.find().targets.targets.items())
    if as_json:
        write_json({"targets": [{"name": name, **entry.model_dump(mode="json")} for name, entry in entries]})
        return
    drawn = table("target", "source", "task", "fingerprint")
    for name, entry in entries:
        drawn.add_row(name, entry.source, entry.task, entry.fingerprint[:19])
    console.print(drawn)
