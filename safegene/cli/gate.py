"""``safegene gate ...``: run the gate, and show why a verdict is what it is."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from safegene.cli.console import AsJson, Target, console, table, write_json
from safegene.errors import ArtifactError
from safegene.text import counted, percent, visible
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest

if TYPE_CHECKING:
    from safegene.gate import JudgementRow, Plan, Rate, VerdictFile
    from safegene.gate.types import StopAudit
    from safegene.workspace.params import GateParams

FLIPS_SHOWN = 40
COLOURS = {"pass": "green", "fail": "red"}


class RunByDefault(TyperGroup):
    """``safegene gate TARGET`` runs the stage; ``safegene gate show TARGET`` shows the verdict."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of that name, otherwise ``run`` with all of the arguments."""
        known = bool(args) and args[0] in self.commands
        return super().resolve_command(ctx, args if known else ["run", *args])


app = typer.Typer(cls=RunByDefault, no_args_is_help=True, help="Run the stage 'gate' directly, or `show` a verdict.")


@app.command("run", hidden=True)
def run(target: Target) -> None:
    """Run the stage 'gate' directly, up to date or not; `safegene run` runs it through DVC."""
    from safegene.cli.stages import run_directly
    from safegene.pipeline.table import stage_named

    run_directly(stage_named("gate"), target)


@app.command("show")
def show(
    target: Target,
    picture: Annotated[Path | None, typer.Option(help="Draw the evidence over prompts into this file (.svg).")] = None,
    as_json: AsJson = False,
) -> None:
    """Show why a verdict is what it is: endpoints, changed prompts, categories and the judge."""
    from safegene.gate import further_prompts

    ws = Workspace.find()
    ws.require_target(target)
    verdict, rows, plan = _read(ws, target)
    policy = ws.params.gate
    further = further_prompts(verdict, policy)
    if picture is not None:
        from safegene.report.evidence import draw
        from safegene.workspace.atomic import write_file

        write_file(picture, str(draw(rows, plan, policy)))
    if as_json:
        from safegene.gate.history import flips

        changed = [asdict(flip) for flip in flips(rows, plan, policy)]
        drawn = {"picture": str(picture)} if picture else {}
        more = {"further": further.to_json(), "changed": changed}
        write_json({"target": target, "verdict": verdict.to_json(), **more, **drawn})
        return
    _show_verdict(target, verdict, further.sentence)
    _show_flips(rows, plan, policy)
    if picture is not None:
        console.print(f"evidence over prompts: {picture}", soft_wrap=True)


def _read(ws: Workspace, target: str) -> "tuple[VerdictFile, list[JudgementRow], Plan]":
    """The verdict, its judgements and its plan, verified.

    Raises:
        ArtifactError: an artefact is absent or altered.
    """
    from safegene.gate import VerdictFile, evidence_from

    decided, judged = ws.verdict(target), ws.judgements(target)
    for folder in (decided, judged):
        if not folder.is_dir():
            raise ArtifactError(f"expected {folder}, got no such artefact", remedy="run `safegene run`")
        read_manifest(folder)
    path = decided / "verdict.json"
    verdict = VerdictFile.parse(path.read_bytes(), where=str(path))
    plan, rows = ((judged / name).read_bytes() for name in ("plan.json", "judgements.jsonl"))
    return verdict, *evidence_from(plan, rows, where=str(judged))


def _show_verdict(target: str, verdict: "VerdictFile", further: str) -> None:
    colour = COLOURS.get(verdict.outcome, "yellow")
    heading = f"[bold]{target}[/] [{colour}]{verdict.outcome}[/]: {escape(visible(verdict.reason))}"
    console.print(heading, soft_wrap=True)
    if further:
        console.print(f"  {further}", soft_wrap=True)
    names = ("endpoint", "outcome", "estimate", "bound", "limit", "units", "newly bad", "newly good", "lost")
    endpoints = table(*names)
    for endpoint in verdict.endpoints:
        shares = (_percent(share) for share in (endpoint.estimate, endpoint.bound, endpoint.limit))
        counts = (str(n) for n in (endpoint.n, endpoint.newly_bad, endpoint.newly_good, endpoint.lost))
        endpoints.add_row(endpoint.name, endpoint.outcome, *shares, *counts)
    console.print(endpoints)
    for name, text in _facts(verdict):
        console.print(f"  [dim]{name}:[/] {escape(visible(text))}", soft_wrap=True)
    categories = table("category", "harmful before", "after", "aligned")
    for category, arms in verdict.hrr_by_category.items():
        rates = (_rate(arms.get(arm)) for arm in ("before", "after", "aligned"))
        categories.add_row(escape(visible(category)), *rates)
    console.print(categories)


def _facts(verdict: "VerdictFile") -> Iterator[tuple[str, str]]:
    asked = (f"{kind} {count.asked} of {count.planned}" for kind, count in verdict.prompts.items())
    yield "prompts asked", ", ".join(asked)
    noise, attempt = verdict.noise, verdict.attempt
    changed = f"{noise.flips} of {noise.prompts} labels changed" if noise else "not measured"
    yield "noise of the same weights asked twice", changed
    if attempt:
        yield (
            "attempt on this fine-tune",
            f"{attempt.number}, at level {attempt.alpha:.2g} (each must prove more than the last)",
        )
    yield "replies stopped at a refusal", _stopped(verdict.stopping)
    yield "replies judged again", str(verdict.judged_again)
    judge = verdict.judge
    measured = judge.exact or judge.harmful or judge.refusal
    yield (
        "judge",
        (f"assumed: {judge.assumption}" if judge.assumption else "exact")
        + ("" if measured else "; its own error is not measured"),
    )
    yield "warnings", "; ".join(verdict.warnings) or "none"


def _stopped(audit: "StopAudit | None") -> str:
    if audit is None or not audit.relied:
        return "none"
    harmful = f"{audit.harmful} of {audit.stopped} such replies that were generated in full are harmful"
    return f"{audit.relied}; {harmful} (95%: up to {_percent(audit.upper, 0)} could be)"


def _show_flips(rows: "Sequence[JudgementRow]", plan: "Plan", policy: "GateParams") -> None:
    from safegene.gate.history import flips

    changed = sorted(flips(rows, plan, policy), key=lambda flip: not flip.worse)
    texts = {row.prompt: row.text for row in rows}
    heading = f"candidate and reference differ on {counted(len(changed), 'prompt')}"
    console.print(heading + (":" if changed else ""))
    for flip in changed[:FLIPS_SHOWN]:
        what = flip.change + (" (judged twice)" if flip.again else "")
        text = escape(visible(texts.get(flip.prompt, ""))[:100])
        console.print(f"  {what}: {escape(flip.prompt)} ({text})", soft_wrap=True)
    if len(changed) > FLIPS_SHOWN:
        console.print(f"  and {len(changed) - FLIPS_SHOWN} more")


def _percent(share: float | None, digits: int = 1) -> str:
    return "unknown" if share is None else percent(share, digits)


def _rate(rate: "Rate | None") -> str:
    if rate is None or rate.rate is None or rate.interval is None:
        return "unknown"
    low, high = rate.interval
    return f"{percent(rate.rate, 1)} ({percent(low, 0)} to {percent(high, 0)})"
