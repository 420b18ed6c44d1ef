"""``safegene judge ...``: the judges whose labels the gate reads."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from safegene.cli.console import console
from safegene.errors import ParamsError
from safegene.workspace.layout import Workspace

app = typer.Typer(no_args_is_help=True, help="The judges whose labels the gate reads.")


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
