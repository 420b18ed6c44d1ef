"""``safegene ...``: thin commands over the pipeline, the registry and the flows.

Nothing heavy is imported until a command needs it: ``safegene --help`` answers in under a second.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from safegene.cli import audit as cli_audit
from safegene.cli import gate as cli_gate
from safegene.cli import suite as cli_suite
from safegene.cli.console import AsJson, Target, console, manual_run, write_json
from safegene.errors import ParamsError, SafegeneError
from safegene.pipeline.process import end_with_flow, report_error, show_progress
from safegene.pipeline.runner import run_stage
from safegene.pipeline.table import PIPELINE, stage_named
from safegene.version import __version__
from safegene.workspace.layout import Workspace

app = typer.Typer(
    name="safegene", no_args_is_help=True, add_completion=False, rich_markup_mode="rich", help=__doc__.split("\n")[0]
)
target_app = typer.Typer(no_args_is_help=True, help="The fine-tunes of a workspace (data/targets.yaml).")
tiny_app = typer.Typer(no_args_is_help=True, help="The tiny model family of the demo and the tests.")
keys_app = typer.Typer(no_args_is_help=True, help="Signing keys, kept outside every repository.")
judge_app = typer.Typer(no_args_is_help=True, help="The instrument that the gate reads.")
GROUPS = {
    "target": target_app,
    "gate": cli_gate.app,
    "suite": cli_suite.app,
    "audit": cli_audit.app,
    "judge": judge_app,
    "tiny": tiny_app,
    "keys": keys_app,
}
for name, group in GROUPS.items():
    app.add_typer(group, name=name)

OUTCOME_EXIT = {"error": 1, "fail": 3, "inconclusive": 4}  # the worst first: it decides
DEBUG = {"on": False}


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Safety as a reusable, gated, audited part of every fine-tune."""
    DEBUG["on"] = debug
    if version:
        console.print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        console.print(context.get_help())


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    remote: Annotated[str | None, typer.Option(help="DVC remote: s3://bucket/prefix or a folder.")] = None,
    ledger: Annotated[str | None, typer.Option(help="Ledger: s3://bucket/prefix or a folder.")] = None,
    params: Annotated[Path | None, typer.Option(help="A params.yaml to start from.")] = None,
) -> None:
    """Make a pipeline repository: Git, DVC, parameters, prompt sets, a signing key."""
    from safegene.pipeline.init import init as make

    ws = make(folder, remote=remote, ledger=ledger, params=params)
    console.print(f"workspace {ws.root}", soft_wrap=True)
    console.print("next: [bold]safegene target add NAME SOURCE --task TASK[/], then [bold]safegene run[/]")


@app.command()
def demo(folder: Annotated[Path, typer.Argument(help="Where the demo's workspace goes.")] = Path("demo")) -> None:
    """The whole pipeline on the tiny family: four fine-tunes, repaired, gated, promoted or refused, on record."""
    from safegene.cli.demo import run_demo

    raise typer.Exit(run_demo(folder, console))


@app.command()
def run(
    targets: Annotated[list[str] | None, typer.Argument(help="Targets (default: all).", show_default=False)] = None,
    trigger: Annotated[str, typer.Option(help="Why, for the record.")] = "manual",
) -> None:
    """Bring the family up to date, then re-align, gate and promote. Exit 0 pass, 3 fail, 4 inconclusive, 1 error."""
    from safegene.report.state import read_state
    from safegene.report.status import table

    ws = Workspace.find()
    outcomes = run_flow(ws, targets or None, trigger)
    console.print(table([target for target in read_state(ws).targets if target.name in outcomes]))
    ended = set(outcomes.values())
    otherwise = 0 if ended <= {"pass"} else 1  # a word that is not known here is no pass
    raise typer.Exit(next((code for outcome, code in OUTCOME_EXIT.items() if outcome in ended), otherwise))


def run_flow(ws: Workspace, targets: list[str] | None, trigger: str) -> dict[str, str]:
    """Run the flow ``realign`` against the configured Prefect server, or a private one."""
    from flows.server import prefect_server

    with prefect_server():
        from flows.realign import realign

        return realign(str(ws.root), targets, trigger)


@app.command()
def status(as_json: AsJson = False) -> None:
    """Every target's rates with 95% intervals, its last outcome, and what is live."""
    from safegene.report.state import read_state
    from safegene.report.status import table, to_json

    targets = read_state(Workspace.find()).targets
    if as_json:
        write_json({"targets": [to_json(target) for target in targets]})
    else:
        console.print(table(targets))


def _stage_command(name: str, per_target: bool) -> None:
    stage = stage_named(name)
    doc = f"Run the stage {name!r} now, outside DVC's bookkeeping (`safegene run` is the usual way)."

    def family() -> None:
        run_stage(stage, Workspace.find())

    def one(target: Target) -> None:
        run_stage(stage, Workspace.find(), target)

    app.command(name, help=doc, rich_help_panel="Stages")(one if per_target else family)


for _stage in PIPELINE:
    if _stage.tracked and _stage.name not in GROUPS:
        _stage_command(_stage.name, _stage.per_target)


@app.command()
def promote(
    target: Target, dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen.")] = False
) -> None:
    """Record the attempt, and put the candidate live if its verdict allows. Exit 3 refused, 4 inconclusive."""
    from safegene.pipeline.stages.promote import promote as put_live

    ws = Workspace.find()
    done = put_live(ws, target, run=manual_run(ws), dry_run=dry_run)
    console.print(done.message, soft_wrap=True)


@app.command()
def rollback(
    target: Target,
    to: Annotated[str | None, typer.Option(help="Record to go back to (default: the one before).")] = None,
    channel: Annotated[str | None, typer.Option(help="Default: promote.channel.")] = None,
) -> None:
    """Promote what was live before, verified again, on record."""
    from safegene.pipeline.stages.promote import rollback as rollback

    ws = Workspace.find()
    done = rollback(ws, target, to=to, channel=channel, run=manual_run(ws))
    console.print(done.message, soft_wrap=True)


@app.command()
def resolve(
    target: Target, channel: Annotated[str | None, typer.Argument(help="Default: promote.channel.")] = None
) -> None:
    """What a server should load now: the place and digest of what is live, verified byte for byte (JSON)."""
    from safegene.pipeline.stages.promote import resolve_live

    ws = Workspace.find()
    write_json(resolve_live(ws, target, channel=channel))


@app.command()
def merge(
    target: Target,
    out: Annotated[Path, typer.Argument(help="A new folder for the merged checkpoint.")],
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    lossy: Annotated[bool, typer.Option("--lossy", help="Merge though rounding erases much of the change.")] = False,
) -> None:
    """Write the target with its repair (a LoRA: with its own change too) merged in; says what survives rounding."""
    from safegene.pipeline.export import merge as write

    ws = Workspace.find()
    folders = {"aligned": ws.aligned, "target": ws.checkpoint(target), "candidate": ws.candidate(target)}
    facts = write(**folders, out=out, dtype=dtype, lossy=lossy, limits=ws.params.fetch)
    console.print(f"{out}: {facts['dtype']}, {facts['survival']:.1%} of the change survives rounding", soft_wrap=True)


@app.command()
def export(target: Target, out: Annotated[Path, typer.Argument(help="A new folder for the adapter.")]) -> None:
    """Write the repair as a PEFT adapter that loads on the unmodified target, with its model card."""
    from safegene.pipeline.export import export as write

    ws = Workspace.find()
    verdict = ws.verdict(target) if ws.verdict(target).is_dir() else None
    facts = write(ws.candidate(target), out=out, target=target, verdict=verdict)
    console.print(f"{out}: {facts['parameters']:,} parameters, loads on {facts['loads_on']}", soft_wrap=True)


@app.command()
def report() -> None:
    """Write the HTML report of where the workspace stands."""
    from safegene.report import write_report

    console.print(str(write_report(Workspace.find())), soft_wrap=True)


@app.command()
def diagnose(target: Target, as_json: AsJson = False) -> None:
    """Why a target's repair may fall short, in numbers, before the gate decides; with pictures. Trains nothing."""
    from safegene.report.diagnosis import draw, headline, read_diagnosis, table

    ws = Workspace.find()
    found = read_diagnosis(ws, target)
    pictures = draw(found, ws.reports / f"diagnose-{target}")
    if as_json:
        write_json({"target": target, **found.diagnosis.model_dump(), "pictures": [str(path) for path in pictures]})
        return
    console.print(headline(found), soft_wrap=True)
    console.print(table(found))
    for path in pictures:
        console.print(str(path), soft_wrap=True)


@app.command()
def watch() -> None:
    """Look once for new fine-tunes and changed checkpoints; add them, and tell the Prefect server's triggers."""
    from flows.server import prefect_server

    with prefect_server():
        from flows.watch import watch as look

        found = look(str(Workspace.find().root))
    console.print(f"{len(found)} new or changed" + (f": {', '.join(found)}; next: safegene run" if found else ""))


@app.command()
def deploy() -> None:
    """Serve the schedule, the watch and the triggers until interrupted (needs PREFECT_API_URL)."""
    if not os.environ.get("PREFECT_API_URL"):
        raise ParamsError(
            "expected PREFECT_API_URL to name a running Prefect server, got none",
            remedy="`prefect server start`, then `export PREFECT_API_URL=http://127.0.0.1:4200/api`",
        )
    from flows.deployments import main as serve

    serve()


@target_app.command("add")
def target_add(
    name: Target,
    source: Annotated[str, typer.Argument(help="hf://org/model@revision, s3://, file:///path or tiny://.")],
    task: Annotated[str, typer.Option(help="Its task set: data/tasks/TASK.jsonl.")],
) -> None:
    """Name a fine-tune, pinned to what its source holds now."""
    from safegene.pipeline.init import add_target

    entry = add_target(Workspace.find(), name, source, task)
    console.print(f"{name}: {entry.source} at {entry.fingerprint}", soft_wrap=True)


@target_app.command("remove")
def target_remove(name: Target) -> None:
    """Take a fine-tune out; what is live for it stays live."""
    from safegene.pipeline.init import remove_target

    remove_target(Workspace.find(), name)


@target_app.command("list")
def target_list() -> None:
    """The fine-tunes, their sources and tasks."""
    table = Table("target", "source", "task", "fingerprint")
    for name, entry in sorted(Workspace.find().targets.targets.items()):
        table.add_row(name, entry.source, entry.task, entry.fingerprint[:19])
    console.print(table)


@judge_app.command("calibrate")
def judge_calibrate(
    labels: Annotated[
        Path,
        typer.Argument(help="JSON lines: prompt, reply, and harmful, refusal or both (true/false); or a public set."),
    ],
    what: Annotated[
        str, typer.Option(help="What the labels are, for the record: source, kind of reply, how many people.")
    ],
    form: Annotated[
        Literal["ours", "gptfuzz", "xstest"],
        typer.Option("--format", help="JSON lines of ours, GPTFuzz's evaluate.csv, or XSTest's labelled completions."),
    ] = "ours",
    which: Annotated[
        Literal["judge", "adjudicator"], typer.Option("--judge", help="Which of the two judges of params.yaml.")
    ] = "judge",
) -> None:
    """Measure a judge of params.yaml on replies that people labelled; writes its evaluate.*.calibration."""
    from safegene.errors import ParamsError
    from safegene.evaluation.judges.calibration import calibrate_judge, describe_counts

    ws = Workspace.find()
    params = ws.params.evaluate.judge if which == "judge" else ws.params.evaluate.adjudicator
    if params is None:
        raise ParamsError("expected evaluate.adjudicator to name a judge, got none", remedy="set it in params.yaml")
    found, path = calibrate_judge(params, labels, what, root=ws.root, form=form)
    for name, counts in (("harmful", found.harmful), ("refusal", found.refusal)):
        console.print(describe_counts(name, counts), soft_wrap=True)
    console.print(str(path), soft_wrap=True)


@keys_app.command("create")
def keys_create() -> None:
    """Make an ed25519 signing key outside every repository."""
    from safegene.ledger import create_key

    console.print(create_key())


@keys_app.command("list")
def keys_list() -> None:
    """The keys of this user."""
    from safegene.ledger import key_ids

    for key in key_ids():
        console.print(key)


@tiny_app.command("build")
def tiny_build(
    name: Annotated[str, typer.Argument(help="base, aligned, sentiment, topic, group or adversarial.")],
    seed: Annotated[int, typer.Option(help="The family's seed.")] = 0,
) -> None:
    """Build a model of the tiny family (cached) and print its folder."""
    from safegene.tiny.build import build

    console.print(str(build(name, seed)), soft_wrap=True)


def main() -> None:
    """Entry point: one clear sentence per error, a remedy, and the exit code that DESIGN names."""
    end_with_flow()
    try:
        show_progress()
        app(standalone_mode=True)
    except SafegeneError as error:
        report_error(error, trace=DEBUG["on"])
        raise SystemExit(error.exit_code) from None
