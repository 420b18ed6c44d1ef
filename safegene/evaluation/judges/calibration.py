"""A judge's measured error: its decisions compared with human labels, kept as a JSON file.

The file MUST be ``{"schema": "safegene/calibration/v1", "judge": IDENTITY, "labels": TEXT, "harmful": COUNTS or null,
"refusal": COUNTS or null}`` with ``COUNTS = {"true_positives", "positives", "true_negatives", "negatives"}``. It holds
counts and no rates: the gate computes the intervals. A calibration is valid only for the judge of that identity.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from safegene.errors import EmptySample, JudgeError, ParamsError
from safegene.evaluation.judges import build
from safegene.evaluation.judges.base import Judge
from safegene.evaluation.judges.labels import LabelForm, read_labels
from safegene.gate import Calibration, ConfusionCounts, Label
from safegene.gate.floors import FLOORS, has_enough_labels
from safegene.gate.statistics import wilson
from safegene.workspace.atomic import write_file
from safegene.workspace.digest import canonical_json
from safegene.workspace.params import JudgeParams
from safegene.workspace.parsing import Strict, parse_json

log = logging.getLogger(__name__)


def measure_judge(
    judge: Judge,
    prompts: Sequence[str],
    replies: Sequence[str],
    *,
    labels: str,
    harmful: Sequence[bool | None] | None = None,
    refusal: Sequence[bool] | None = None,
) -> Calibration:
    """Judge labelled replies and count where the judge agrees with people; an unscored reply counts as wrong.

    Args:
        judge: the judge to measure.
        prompts: the prompts.
        replies: their replies, in the same order.
        labels: what the labels are, for the record: source, kind of reply, how many people.
        harmful: human labels of harm, in the replies' order; None when there are none, and for a reply that does not
            count since the gate asks for harm in no reply to a harmless prompt.
        refusal: human labels of refusal; None when there are none.

    Raises:
        EmptySample: there is no reply, or there are no labels.
        ParamsError: ``labels`` says nothing.
    """
    if not replies or (harmful is None and refusal is None):
        raise EmptySample(f"expected labelled replies to measure a judge on, got {len(replies)}")
    if not labels.strip():
        raise ParamsError("expected to know where the labels come from, got no text", remedy="say it with `--what`")
    decisions = judge.judge(prompts, replies)
    return Calibration(
        judge=judge.identity,
        harmful=None if harmful is None else _counts([one.harmful for one in decisions], harmful),
        refusal=None if refusal is None else _counts([one.refusal for one in decisions], refusal),
        labels=labels,
    )


def log_cost(name: str, judge: Judge) -> None:
    """Log what the judge has spent; nothing for a judge that costs nothing."""
    if judge.cost is not None:
        log.info("%s: %s", name, judge.cost)


def calibrate_judge(
    params: JudgeParams, labels: Path, what: str, *, root: Path, form: LabelForm = "ours"
) -> tuple[Calibration, Path]:
    """Measure the judge of ``params`` on labelled replies, and write its calibration file.

    Args:
        params: the judge; ``params.calibration`` is the file to write, relative to ``root``.
        labels: file of labelled replies.
        what: what the labels are, for the record.
        root: the workspace.
        form: the form of ``labels``.

    Raises:
        ParamsError: ``params.calibration`` is not set.
        JudgeError: the judge cannot be built, or there is no such file of labels.
        FormatError: the labels are malformed.
        EmptySample: there are no labels.
    """
    if params.calibration is None:
        raise ParamsError(
            "expected evaluate.judge.calibration (or adjudicator.calibration) to say where the error goes, got none",
            remedy="set it to a file in data/judges, such as data/judges/judge.json",
        )
    rows = read_labels(labels, form)
    judge = build(params)
    measured = measure_judge(judge, rows.prompts, rows.replies, labels=what, harmful=rows.harmful, refusal=rows.refusal)
    log_cost("judge", judge)
    for name, counts in (("harm", measured.harmful), ("refusal", measured.refusal)):
        if counts is not None and not has_enough_labels(measured, counts):
            few = f"{counts.positives} labels of yes and {counts.negatives} of no"
            log.warning("%s: %s cannot give a pass: the gate needs %d of each", name, few, FLOORS.labels)
    path = root / params.calibration
    write_calibration(measured, path)
    return measured, path


def _counts(decided: Sequence[Label], truth: Sequence[bool | None]) -> ConfusionCounts:
    pairs = list(zip(decided, truth, strict=True))
    positives, negatives = ([label for label, is_true in pairs if is_true is kind] for kind in (True, False))
    return ConfusionCounts(
        true_positives=positives.count("yes"),
        positives=len(positives),
        true_negatives=negatives.count("no"),
        negatives=len(negatives),
    )


def calibration_of(params: JudgeParams, judge: Judge) -> Calibration | None:
    """The judge's error: exact, or as its calibration file says; None when it was not measured yet: without a file.

    Raises:
        JudgeError: the file was measured on another judge.
        FormatError: the file is malformed.
    """
    if judge.exact:
        return Calibration(judge.identity, exact=True, labels=judge.exact)
    if params.calibration is None or not params.calibration.is_file():
        return None
    measured = calibration_from(params.calibration)
    if measured.judge != judge.identity:
        raise JudgeError(
            f"expected a calibration of judge {judge.identity}, got one of {measured.judge}, in {params.calibration}",
            remedy="measure this judge, `safegene judge calibrate`: its prompt, phrases, weights or threshold differ",
        )
    return measured


class CalibrationFile(Strict):
    """The content of a calibration file."""

    OPTIONAL_KEYS: ClassVar[frozenset[str]] = frozenset()

    schema_: Literal["safegene/calibration/v1"] = Field("safegene/calibration/v1", alias="schema")
    judge: str
    labels: str
    harmful: ConfusionCounts | None
    refusal: ConfusionCounts | None


def calibration_from(path: Path) -> Calibration:
    """Read a calibration file.

    Raises:
        FormatError: it is malformed, or a count of right decisions is above its total.
    """
    file = parse_json(CalibrationFile, path.read_bytes(), where=str(path))
    return Calibration(file.judge, harmful=file.harmful, refusal=file.refusal, labels=file.labels)


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write a calibration file; the same counts give the same bytes."""
    file = CalibrationFile(
        judge=calibration.judge,
        labels=calibration.labels,
        harmful=calibration.harmful,
        refusal=calibration.refusal,
    )
    write_file(path, canonical_json(file.model_dump(mode="json", by_alias=True)) + b"\n")


@dataclass(frozen=True)
class Agreement:
    """How far a judge and people agree, over all labelled replies.

    Attributes:
        n: number of labelled replies.
        base_rate: share that people label yes.
        accuracy: share of replies on which judge and people agree; misleading if the base rate is near 0 or 1.
        kappa: Cohen's kappa (Cohen 1960), (accuracy - chance) / (1 - chance), where chance is the agreement of two
            independent raters with the rates of judge and people; None where chance is 1.
        bias: the judge's rate of yes minus the people's, in -1..1.
    """

    n: int
    base_rate: float
    accuracy: float
    kappa: float | None
    bias: float


def agreement(counts: ConfusionCounts) -> Agreement:
    """Accuracy, kappa and bias; an unscored reply counts as the wrong decision, as in `measure_judge`.

    Raises:
        EmptySample: nothing was labelled.
    """
    n = counts.positives + counts.negatives
    if not n:
        raise EmptySample("expected labelled replies, got none")
    right = counts.true_positives + counts.true_negatives
    labelled_yes = counts.true_positives + counts.negatives - counts.true_negatives
    chance = labelled_yes * counts.positives + (n - labelled_yes) * counts.negatives  # times n * n
    kappa = None if chance == n * n else (right * n - chance) / (n * n - chance)
    return Agreement(n, counts.positives / n, right / n, kappa, (labelled_yes - counts.positives) / n)


def describe_counts(what: str, counts: ConfusionCounts | None) -> str:
    """Sensitivity and specificity with 95% Wilson intervals, then accuracy, kappa and bias, as one line of text."""
    if counts is None:
        return f"{what}: not measured"
    parts = (
        ("sensitivity", counts.true_positives, counts.positives),
        ("specificity", counts.true_negatives, counts.negatives),
    )
    shown = []
    for name, right, n in parts:
        if not n:
            shown.append(f"{name} not measured (n 0)")
            continue
        low, high = wilson(right, n)
        shown.append(f"{name} {right / n:.3f} ({low:.3f} to {high:.3f}, n {n})")
    if counts.positives + counts.negatives:
        result = agreement(counts)
        kappa = "not defined" if result.kappa is None else f"{result.kappa:.3f}"
        shown.append(f"accuracy {result.accuracy:.3f} at a base rate of {result.base_rate:.3f}, kappa {kappa}")
        shown.append(f"bias {100 * result.bias:+.1f} points (n {result.n})")
    return f"{what}: {', '.join(shown)}"
