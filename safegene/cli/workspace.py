"""Commands on a workspace as a whole: run its flows, show its state."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from safegene.cli import console as shown
from safegene.cli.console import AsJson, Target, console, write_json
from safegene.errors import ParamsError
from safegene.text import redact_text, visible
from safegene.workspace.layout import Workspace

if TYPE_CHECKING:
    from safegene.report.state import TargetState

OUTCOME_EXIT = {
    "error": 1,
    "fail": 3,
    "inconclusive": 4,
    "pending": 4,
    "unknown": 4,
}  # of several outcomes the first in this order decides


def demo(folder: Annotated[Path, typer.Argument(help="Folder of the demo's workspace.")] = Path("demo")) -> None:
    """Run the whole pipeline on the tiny model family: four fine-tunes are repaired, gated and promoted or refused."""
    from safegene.cli.demo import run_demo

    raise typer.Exit(run_demo(folder, console))


def run(
    targets: Annotated[list[str] | None, typer.Argument(help="Targets (default: all).", show_default=False)] = None,
    trigger: Annotated[str, typer.Option(help="The reason for the run, for the record.")] = "manual",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run and how it would end; exit 4 where stages must run.")
    ] = False,
    promotes: Annotated[
        bool,
        typer.Option(
            "--promote/--no-promote",
            help="Without promotion: end with verdicts and report; no key is needed, nothing is recorded or committed.",
        ),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Update the family, then re-align, gate and promote. Exit 0 pass, 3 fail, 4 inconclusive, 1 error."""
    from safegene.report.state import read_state

    ws = Workspace.find()
    if dry_run:
        raise typer.Exit(_dry_run(ws, targets or [], as_json))
    outcomes = run_flow(ws, targets or None, redact_text(trigger), promotes)  # Prefect keeps the parameters of a flow
    code = exit_code(set(outcomes.values()))
    show_targets([target for target in read_state(ws).targets if target.name in outcomes], as_json, exit_code=code)
    refused = [name for name, outcome in outcomes.items() if outcome in ("fail", "inconclusive")]
    if refused and not as_json:
        console.print(f"next: [bold]safegene gate show {refused[0]}[/] (docs/how-to/refusal.md)", soft_wrap=True)
    raise typer.Exit(code)


def _dry_run(ws: Workspace, names: "Sequence[str]", as_json: bool) -> int:
    """Print what a run would do; its exit code as far as it is known, 4 where stages must run first."""
    from safegene.pipeline.foresee import foresee

    for name in names:
        ws.require_target(name)
    foreseen = foresee(ws, sorted(names or ws.targets.targets))
    code = exit_code({run.outcome for run in foreseen})
    if as_json:
        write_json({"targets": [asdict(run) for run in foreseen], "exit_code": code})
    for line in [run.message for run in foreseen] if not as_json else []:
        console.print(line, soft_wrap=True, markup=False)
    return code


def show_targets(targets: "Sequence[TargetState]", as_json: bool, **more: object) -> None:
    """Print targets as ``safegene status`` does; ``more`` goes beside them in JSON."""
    from safegene.report.status import table, to_json

    if as_json:
        write_json({"targets": [to_json(target) for target in targets], **more})
    else:
        console.print(table(targets))


def run_flow(ws: Workspace, targets: list[str] | None, trigger: str, promotes: bool = True) -> dict[str, str]:
    """Run the flow ``realign`` on the configured Prefect server, or on a private one; target -> outcome.

    The checks of `safegene.pipeline.doctor` come first: a server takes seconds to start.
    """
    from flows.server import check_server, prefect_server
    from safegene.pipeline.doctor import require_ready

    require_ready(ws, targets, more=check_server(), signs=promotes)
    with prefect_server():
        from flows.realign import realign

        return realign(str(ws.root), targets, trigger, promotes)


def exit_code(outcomes: set[str]) -> int:
    """Exit code of a run; an outcome that is not known here is no pass."""
    known = (code for outcome, code in OUTCOME_EXIT.items() if outcome in outcomes)
    return next(known, 0 if outcomes <= {"pass"} else 1)


def status(
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown, as for a comment.")] = False,
) -> None:
    """Show every target's candidate, what is live, why, and their rates with n and 95% intervals."""
    from safegene.report import write_markdown
    from safegene.report.state import read_state

    if markdown:
        typer.echo(write_markdown(Workspace.find()), nl=False)
        return
    show_targets(read_state(Workspace.find()).targets, as_json)


def diagnose(target: Target, as_json: AsJson = False) -> None:
    """Say in numbers and pictures why a target's repair may fall short, before the gate decides. Trains nothing."""
    from safegene.report.diagnosis import coverage, draw, headline, read_diagnosis, table

    ws = Workspace.find()
    diagnosis = read_diagnosis(ws, target)
    pictures = [str(path) for path in draw(diagnosis, ws.reports / f"diagnose-{target}")]
    if as_json:
        write_json({"target": target, **diagnosis.diagnosis.model_dump(), "pictures": pictures})
        return
    console.print(headline(diagnosis), soft_wrap=True)
    console.print(table(diagnosis))
    for sentence in coverage(diagnosis.diagnosis):
        console.print(sentence, soft_wrap=True)
    for path in pictures:
        console.print(path, soft_wrap=True)


def watch(
    history: Annotated[
        bool, typer.Option("--history", help="Show what was found and what became of it; look at nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look once for new fine-tunes and changed checkpoints, add them, and notify the Prefect server's triggers."""
    if history:
        _show_discoveries(Workspace.find(), as_json)
        return
    from flows.server import prefect_server

    with prefect_server():
        from flows.watch import watch as look

        names = look(str(Workspace.find().root))
    if as_json:
        write_json({"announced": names})
        return
    console.print(f"{len(names)} new or changed" + (f": {', '.join(names)}; next: safegene run" if names else ""))


def _show_discoveries(ws: Workspace, as_json: bool) -> None:
    from safegene.pipeline.watched import read_discoveries

    rows = [(name, row) for name in sorted(ws.targets.targets) for row in read_discoveries(ws, name)]
    if as_json:
        write_json({"discoveries": [{"target": name, **row.model_dump(mode="json")} for name, row in rows]})
        return
    drawn = shown.table("target", "found", "content", "state", "tries", "why")
    for name, row in rows:
        why = f"record {row.record}" if row.state == "decided" else row.why
        drawn.add_row(name, row.found, row.fingerprint[:19], row.state, str(row.tries), escape(visible(why)))
    console.print(drawn)


def drift(
    targets: Annotated[list[str] | None, typer.Argument(help="Targets (default: all).", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate what is live again, on the present suite. Exit 0 where all pass, 3 fail, 4 inconclusive, 1 error."""
    from flows.server import check_server, prefect_server
    from safegene.pipeline.doctor import require_ready

    ws = Workspace.find()
    for name in targets or ():
        ws.require_target(name)
    require_ready(ws, targets or None, more=check_server(), signs=ws.params.promote.on_drift == "rollback")
    with prefect_server():
        from flows.drift import drift as check

        outcomes = check(str(ws.root), targets or None)
    code = exit_code(set(outcomes.values()))
    if as_json:
        from safegene.ledger.drift import read_drift

        found = [found.model_dump(mode="json") for name in outcomes if (found := read_drift(ws, name))]
        write_json({"targets": found, "exit_code": code})
    else:
        lines = (f"{name}: {outcome}" for name, outcome in outcomes.items())
        console.print("\n".join(lines) or "nothing is live")
    raise typer.Exit(code)


def deploy() -> None:
    """Serve the schedule, the watch and the triggers until interrupted (needs PREFECT_API_URL)."""
    if not os.environ.get("PREFECT_API_URL"):
        raise ParamsError(
            "expected PREFECT_API_URL to name a running Prefect server, got none",
            remedy="`prefect server start`, then `export PREFECT_API_URL=http://127.0.0.1:4200/api`",
        )
    from flows.server import prefect_server, quiet_environment

    quiet_environment("ERROR")  # our own lines go to the console in any case
    with prefect_server():
        from flows.deployments import main as serve

        serve()
