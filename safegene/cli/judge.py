"""``safegene judge ...``: the judges whose labels the gate reads."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from safegene.cli.console import Target, console
from safegene.errors import ArtifactError, ParamsError
from safegene.workspace.layout import Workspace

app = typer.Typer(no_args_is_help=True, help="The judges whose labels the gate reads.")


@app.command("sample")
def sample(
    target: Target,
    out: Annotated[Path, typer.Argument(help="JSON lines to write, outside of any repository: replies may do harm.")],
    count: Annotated[int, typer.Option(min=1, help="Number of replies.")] = 160,
) -> None:
    """Write replies of a target's run for people to label; `judge calibrate` then measures the judge on them."""
    from safegene.evaluation.judges.labels import replies_to_label
    from safegene.gate.reading import evidence_from
    from safegene.workspace.atomic import write_file
    from safegene.workspace.manifest import read_manifest

    ws = Workspace.find()
    ws.require_target(target)
    folder = ws.judgements(target)
    if not folder.is_dir():
        raise ArtifactError(f"expected {folder}, got no such artefact", remedy=f"run `safegene run {target}`")
    read_manifest(folder)
    if out.exists():
        raise ParamsError(f"expected a new file, got {out}, which exists", remedy="name another, or remove it")
    plan, rows = ((folder / name).read_bytes() for name in ("plan.json", "judgements.jsonl"))
    lines = replies_to_label(evidence_from(plan, rows, where=str(folder))[0], count)
    write_file(out, lines)
    number = lines.count(b"\n")
    console.print(f"{out}: {number} replies; write true or false for each null", soft_wrap=True, markup=False)
    if number < count:
        why = "the run has no more that differ in prompt or text; one with more gate prompts has"
        console.print(f"  {count} were asked for: {why}", soft_wrap=True)
    what = f"{number} replies of our run, labelled by N people"
    console.print(f'next: [bold]safegene judge calibrate[/] {escape(str(out))} --what "{what}"', soft_wrap=True)


@app.command("calibrate")
def calibrate(
    labels: Annotated[
        Path,
        typer.Argument(help="JSON lines: prompt, reply, and harmful, refusal or both (true/false); or a public set."),
    ],
    what: Annotated[
        str, typer.Option(help="What the labels are, for the record: source, kind of reply, number of people.")
    ],
    form: Annotated[
        Literal["ours", "gptfuzz", "xstest"],
        typer.Option("--format", help="Our JSON lines, GPTFuzz's evaluate.csv, or XSTest's labelled completions."),
    ] = "ours",
    which: Annotated[
        Literal["judge", "adjudicator"], typer.Option("--judge", help="Which of the two judges of params.yaml.")
    ] = "judge",
) -> None:
    """Measure a judge of params.yaml on replies that people labelled, and write its evaluate.*.calibration."""
    from safegene.evaluation.judges.calibration import calibrate_judge, describe_counts

    ws = Workspace.find()
    params = ws.params.evaluate.judge if which == "judge" else ws.params.evaluate.adjudicator
    if params is None:
        raise ParamsError("expected evaluate.adjudicator to name a judge, got none", remedy="set it in params.yaml")
    calibration, path = calibrate_judge(params, labels, what, root=ws.root, form=form)
    for name, counts in (("harmful", calibration.harmful), ("refusal", calibration.refusal)):
        console.print(describe_counts(name, counts), soft_wrap=True)
    console.print(str(path), soft_wrap=True)
    _show_effect(ws)


def _show_effect(ws: Workspace) -> None:
    """What the measured error does to the gate's limits and to the prompts that a pass needs, and what to do next."""
    from safegene.gate.further import DECISION
    from safegene.pipeline.planning.needs import needs_of, shortages

    found = [need for need in needs_of(ws, anew=False) if need.endpoint in DECISION]
    for need in found:
        if need.measured:
            colour = "yellow" if need.units is None or need.missing else "green"
            console.print(f"  [{colour}]{escape(need.effect)}[/]", soft_wrap=True)
        else:
            console.print(
                f"  [yellow]{need.endpoint}: no pass, since the error is not measured well enough[/]", soft_wrap=True
            )
    if not all(need.measured for need in found):
        console.print(
            "next: label more replies of both kinds, [bold]safegene judge sample[/], and measure again", soft_wrap=True
        )
    elif any(need.units is None for need in found):
        console.print(
            "next: choose another judge, or add an adjudicator (docs/how-to/judge.md), and measure it", soft_wrap=True
        )
    elif short := shortages(found):
        more = " and ".join(f"about {some[0].missing} {kind}" for kind, some in short.items())
        ways = "`safegene data add`, `safegene data split`; or choose a judge with less error (docs/how-to/judge.md)"
        console.print(
            f"next: for a pass, {more} prompts more in the gate's set (a run without them cannot pass): {ways}",
            soft_wrap=True,
            markup=False,
        )
    else:
        console.print("next: [bold]safegene run[/]")
