"""Commands before the first run: make a workspace, and say what it still needs."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from safegene.cli.console import AsJson, console, write_json
from safegene.errors import ParamsError
from safegene.text import visible
from safegene.workspace.layout import Workspace

if TYPE_CHECKING:
    from safegene.pipeline.init import OwnFamily
    from safegene.pipeline.planning.needs import Need


def init(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    aligned: Annotated[
        str | None, typer.Option(help="Your aligned model: ./folder, org/model of the Hub, or s3://bucket/prefix.")
    ] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="The tiny family of the demo, with its prompts.")] = False,
    judge: Annotated[str, typer.Option(help="With --aligned: phrases, guard, classifier or chat.")] = "phrases",
    judge_model: Annotated[str | None, typer.Option(help="Folder or Hub id of the judge's model.")] = None,
    judge_revision: Annotated[str | None, typer.Option(help="Commit of the Hub id.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="With --aligned: a folder with your prompt sets, and tasks/*.jsonl.")
    ] = None,
    remote: Annotated[str | None, typer.Option(help="DVC remote: s3://bucket/prefix or a folder.")] = None,
    ledger: Annotated[str | None, typer.Option(help="Ledger: s3://bucket/prefix or a folder.")] = None,
    params: Annotated[Path | None, typer.Option(help="A params.yaml to start from.")] = None,
) -> None:
    """Make a workspace: a Git repository with DVC, parameters and a signing key; for your models, or the tiny family.

    On a terminal it asks what no option says.
    """
    from safegene.pipeline.init import OwnFamily
    from safegene.pipeline.init import init as make

    if tiny and aligned or (data and not aligned):
        raise ParamsError("expected --aligned SOURCE, alone or with --data, or --tiny, got a mixture of them")
    family = OwnFamily(aligned, judge, judge_model, judge_revision, data) if aligned else None
    if family is None and not tiny and params is None and sys.stdin.isatty() and sys.stdout.isatty():
        family = ask_for_family(typer.prompt)
    ws = make(folder, remote=remote, ledger=ledger, params=params, family=family)
    console.print(f"workspace {ws.root}", soft_wrap=True)
    if family is None and params is None and not tiny:
        console.print("it has the tiny family and its prompts; for your own models: --aligned SOURCE")
    for line in next_steps(ws):
        console.print(line, soft_wrap=True)


def ask_for_family(ask: Callable[..., str]) -> "OwnFamily | None":
    """The family, by questions; None for the tiny one.

    Args:
        ask: shows a text with a default, and returns the answer; `typer.prompt`.
    """
    from safegene.pipeline.init import OwnFamily

    aligned = ask("Aligned model (a folder, org/model, s3://...; or tiny, for the demo's family)", default="tiny")
    if aligned.strip() == "tiny":
        return None
    judge = ask("Judge (phrases, guard, classifier, chat)", default="phrases")
    model = ask("Folder or Hub id of the judge's model", default="") if judge != "phrases" else ""
    revision = ask("Commit of the Hub id (empty for a folder)", default="") if model else ""
    data = ask("Folder with your prompt sets (empty: you add them later)", default="")
    return OwnFamily(aligned.strip(), judge, model or None, revision or None, Path(data).expanduser() if data else None)


def next_steps(ws: Workspace) -> list[str]:
    """What the workspace still needs, each with its command, and the run at the end."""
    from safegene.pipeline.doctor import examine

    found = examine(ws, only=("judge", "prompts", "sources")).findings
    ordered = sorted(found, key=lambda one: one.check == "judge")  # it is measured on the replies of a first run
    steps = [f"  {escape(visible(one.remedy))}\n      [dim]{escape(visible(one.message))}[/]" for one in ordered]
    enter = [] if Path.cwd() == ws.root else [f"  cd {escape(visible(str(ws.root)))}"]
    return ["next:", *enter, *steps, "  safegene run"]


def plan(
    targets: Annotated[list[str] | None, typer.Argument(help="Targets (default: all).", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run will do and take: stages, prompts, tokens, bytes, memory, time, and what a pass needs."""
    from safegene.pipeline.planning import plan_run

    planned = plan_run(Workspace.find(), targets or None)
    if as_json:
        write_json(planned.to_json())
        return
    table = Table("stage", "prompts", "tokens", "disk", "memory", "time", "from", box=None, pad_edge=False)
    for stage in planned.stages:
        if stage.runs:
            work, peak = stage.work, planned.peak_bytes.get(stage.address.partition("@")[0])
            counts = (f"{count:,}" if count else "" for count in (work.prompts, work.tokens))
            sizes = (size_words(size) if size else "" for size in (stage.disk_bytes, peak))
            table.add_row(stage.address, *counts, *sizes, time_words(stage.seconds), stage.basis)
    left = sum(stage.runs for stage in planned.stages)
    if left:
        console.print(table)
    total = f"about {time_words(planned.seconds)} on an idle machine, {planned.tokens:,} tokens"
    console.print(f"{left} of {len(planned.stages)} stages will run" + (f": {total}" if left else ""))
    if planned.further_tokens:
        more = f"{time_words(planned.further_seconds)} and {planned.further_tokens:,} tokens"
        why = "where degrade needs higher learning rates, and calibrate its rounds of mining"
        console.print(f"  up to {more} more, {why}", soft_wrap=True)
    for line in need_lines(planned.needs):
        console.print(line, soft_wrap=True)


def need_lines(found: "Sequence[Need]") -> Iterator[str]:
    """What a pass needs beside what the sets hold, a line for each endpoint, then what is missing by kind."""
    from safegene.pipeline.planning.needs import shortages

    for need in found:
        short = need.units is None or need.missing
        yield f"  [yellow]{escape(need.sentence)}[/]" if short else f"  {escape(need.sentence)}"
    for kind, some in shortages(found).items():
        names = ", ".join(need.endpoint for need in some)
        more = f"about {some[0].missing} more {kind} prompts in the gate's set ({names})"
        yield f"  [yellow]missing for a pass: {more}[/]"
    if found and found[0].attempt > 1:
        yield f"  for attempt {found[0].attempt} on a fine-tune: each must prove more (docs/explanation/gate.md)"


def size_words(count: int) -> str:
    """Bytes as text."""
    return f"{count / 2**30:.1f} GiB" if count >= 1 << 30 else f"{max(1, count >> 20)} MiB"


def time_words(seconds: float) -> str:
    """Seconds as text."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def doctor(
    targets: Annotated[list[str] | None, typer.Argument(help="Targets (default: all).", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Look at everything that a run needs, and say what is wrong and what mends it. Exit 1 if a run would fail."""
    from flows.server import check_server
    from safegene.pipeline.doctor import examine

    report = examine(Workspace.find(), targets or None).with_findings("server", check_server())
    if as_json:
        write_json(report.to_json())
    else:
        found = {finding.check for finding in report.findings}
        for name in report.checked:
            if name not in found:
                console.print(f"[green]ok[/]      {name}")
        for finding in report.findings:
            word = "[red]problem[/]" if finding.stops else "[yellow]note[/]   "
            console.print(f"{word} {finding.check}: {escape(visible(finding.message))}", soft_wrap=True)
            console.print(f"        remedy: {escape(visible(finding.remedy))}", soft_wrap=True)
    raise typer.Exit(int(bool(report.problems)))
