"""``safegene gate ...``: decide now, and read what was decided."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from safegene.cli.console import Target, console
from safegene.text import percent, visible
from safegene.workspace.digest import strict_json
from safegene.workspace.layout import Workspace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from safegene.gate import Judgement, Plan
    from safegene.workspace.params import GateParams

MOST = 40  # flips that are listed
COLOURS = {"pass": "green", "fail": "red"}


class Deciding(TyperGroup):
    """``safegene gate TARGET`` decides; ``safegene gate show TARGET`` shows."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of that name, else ``run`` with all of the arguments."""
        known = bool(args) and args[0] in self.commands
        return super().resolve_command(ctx, args if known else ["run", *args])


app = typer.Typer(cls=Deciding, no_args_is_help=True, help="Run the stage 'gate' now, or `show` a verdict.")


@app.command("run", hidden=True)
def gate_run(target: Target) -> None:
    """Run the stage 'gate' now, outside DVC's bookkeeping (`safegene run` is the usual way)."""
    from safegene.pipeline.runner import run_stage
    from safegene.pipeline.table import stage_named

    run_stage(stage_named("gate"), Workspace.find(), target)


@app.command("show")
def gate_show(
    target: Target,
    picture: Annotated[Path | None, typer.Option(help="Draw the evidence over prompts into this file (.svg).")] = None,
) -> None:
    """Why a verdict is what it is: endpoints, flips, categories, the judge, and what it cost."""
    from safegene.errors import ArtifactError, ParamsError
    from safegene.gate import evidence_from
    from safegene.workspace.manifest import read_manifest

    ws = Workspace.find()
    if target not in ws.targets.targets:
        raise ParamsError(f"expected one of the targets {sorted(ws.targets.targets)}, got {target!r}")
    folder = ws.judgements(target)
    for at in (ws.verdict(target), folder):
        if not at.is_dir():
            raise ArtifactError(f"expected {at}, got no such artefact", remedy="run `safegene run`")
        read_manifest(at)
    path = ws.verdict(target) / "verdict.json"
    verdict = strict_json(path.read_bytes(), where=str(path))
    judged = folder / "judgements.jsonl"
    files = ((folder / "plan.json").read_bytes(), judged.read_bytes())
    rows, plan = evidence_from(*files, where=str(folder))
    lines = (strict_json(line, where=str(judged)) for line in files[1].splitlines() if line.strip())
    texts = {row["prompt"]: str(row.get("text", "")) for row in lines}
    _said(target, verdict)
    _flips(rows, plan, ws.params.gate, texts)
    if picture is not None:
        from safegene.report.evidence import draw

        picture.write_text(str(draw(rows, plan, ws.params.gate)), encoding="utf-8")
        console.print(f"evidence over prompts: {picture}", soft_wrap=True)


def _said(target: str, verdict: dict[str, Any]) -> None:
    outcome = str(verdict["outcome"])
    colour = COLOURS.get(outcome, "yellow")
    console.print(
        f"[bold]{target}[/] [{colour}]{outcome}[/]: {escape(visible(str(verdict['reason'])))}", soft_wrap=True
    )
    table = Table(
        "endpoint", "outcome", "estimate", "bound", "limit", "units", "newly bad", "newly good", "lost", box=None
    )
    for one in verdict["endpoints"]:
        shown = [_percent(one[name]) for name in ("estimate", "bound", "limit")]
        counts = [str(one[name]) for name in ("n", "newly_bad", "newly_good", "lost")]
        table.add_row(one["name"], one["outcome"], *shown, *counts)
    console.print(table)
    asked = ", ".join(f"{kind} {one['asked']} of {one['planned']}" for kind, one in verdict.get("prompts", {}).items())
    noise, attempt = verdict.get("noise"), verdict.get("attempt") or {"number": 1, "alpha": math.nan}
    floor = f"{noise['flips']} of {noise['prompts']} labels changed" if noise else "not measured"
    facts = {
        "prompts asked": asked,
        "noise of the same weights asked twice": floor,
        "attempt on this fine-tune": f"{attempt['number']}, at level {attempt['alpha']:.2g}",
        "replies stopped at a refusal": _stopped(verdict.get("stopping")),
        "replies judged again": str(verdict.get("judged_again", 0)),
        "judge": str(verdict["judge"].get("assumption") or "exact"),
        "warnings": "; ".join(verdict["warnings"]) or "none",
    }
    for name, text in facts.items():
        console.print(f"  [dim]{name}:[/] {escape(visible(text))}", soft_wrap=True)
    harmed = Table("category", "harmful before", "after", "aligned", box=None)
    for name, arms in verdict.get("hrr_by_category", {}).items():
        harmed.add_row(escape(visible(name)), *(_rate(arms.get(arm)) for arm in ("before", "after", "aligned")))
    console.print(harmed)


def _stopped(audit: dict[str, Any] | None) -> str:
    if not audit or not audit["relied"]:
        return "none"
    turned = f"{audit['harmful']} of {audit['stopped']} finished in full turned harmful"
    return f"{audit['relied']}; {turned} (95 %: up to {percent(audit['upper'], 0)} could)"


def _flips(rows: "Sequence[Judgement]", plan: "Plan", policy: "GateParams", texts: dict[str, str]) -> None:
    from safegene.gate.history import flips

    found = flips(rows, plan, policy)
    console.print(f"{len(found)} prompts on which candidate and reference differ" + (":" if found else ""))
    for one in sorted(found, key=lambda flip: not flip.worse)[:MOST]:
        text = visible(texts.get(one.prompt, ""))[:100]
        console.print(
            f"  {one.change}{' (judged twice)' * one.again}: {escape(one.prompt)} ({escape(text)})", soft_wrap=True
        )
    if len(found) > MOST:
        console.print(f"  and {len(found) - MOST} more")


def _percent(share: float | None) -> str:
    return "unknown" if share is None else percent(share, 1)


def _rate(one: dict[str, Any] | None) -> str:
    if not one or one.get("rate") is None:
        return "unknown"
    low, high = one["interval"]
    return f"{percent(one['rate'], 1)} ({percent(low, 0)} to {percent(high, 0)})"
