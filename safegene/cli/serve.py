"""``safegene serve-plan``: how the models of a target are served to ``evaluate``."""

from typing import Annotated

import typer

from safegene.cli.console import AsJson, Target, console, write_json
from safegene.workspace.layout import Workspace


def serve_plan(
    target: Target,
    host: Annotated[str, typer.Option(help="Where the servers listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the first server; the others follow.")] = 8000,
    hub: Annotated[bool, typer.Option("--hub", help="Name models by their Hub ids, for servers elsewhere.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the vLLM and SGLang commands that serve a target's models, and the evaluate.server section for them."""
    import yaml

    from safegene.pipeline.serve_plan import PROGRAMS
    from safegene.pipeline.serve_plan import serve_plan as make

    plan = make(Workspace.find(), target, host=host, port=port, hub=hub)
    if as_json:
        write_json(plan.to_json())
        return
    lines = [f"# {note}" for note in plan.notes] + list(plan.merged)
    for program in PROGRAMS:
        section = yaml.safe_dump({"evaluate": {"server": plan.params(program)}}, sort_keys=False)
        lines += ["", f"# {program}: {len(plan.servers)} server(s)", *plan.commands(program)]
        lines += ["", f"# params.yaml, for {program} and this target only", section.rstrip()]
    console.print("\n".join(lines).lstrip(), soft_wrap=True, markup=False)
