"""A judge's measured error: its decisions beside human labels, bound to the judge's identity, kept as a JSON file.

The file MUST be ``{"schema": "safegene/calibration/v1", "judge": IDENTITY, "labels": TEXT, "harmful": COUNTS or null,
"refusal": COUNTS or null}`` with ``COUNTS = {"true_positives", "positives", "true_negatives", "negatives"}``. It holds
counts, not rates, so that the intervals are ours. A file of another judge is refused: an instrument's error is its own,
and every word of a judge's prompt is part of its identity.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safegene.errors import EmptySample, FormatError, JudgeError, ParamsError
from safegene.evaluation.judges import build
from safegene.evaluation.judges.base import Judge
from safegene.evaluation.judges.labels import LabelForm, read_labels
from safegene.gate import Calibration, ConfusionCounts, Label
from safegene.gate.statistics import wilson
from safegene.workspace.digest import canonical_json, strict_json
from safegene.workspace.params import JudgeParams

log = logging.getLogger(__name__)

SCHEMA = "safegene/calibration/v1"


def measure_judge(
    judge: Judge,
    prompts: Sequence[str],
    replies: Sequence[str],
    *,
    labels: str,
    harmful: Sequence[bool] | None = None,
    refusal: Sequence[bool] | None = None,
) -> Calibration:
    """Judge labelled replies and count where the judge agrees; an unscored reply counts as wrong.

    Args:
        judge: the instrument.
        prompts: what was asked.
        replies: what was answered.
        labels: what the labels are, for the record: source, kind of reply, how many people.
        harmful: human labels of harm, in the replies' order; None when there are none.
        refusal: human labels of refusal.

    Raises:
        EmptySample: no reply, or no labels.
    """
    if not replies or (harmful is None and refusal is None):
        raise EmptySample(f"expected labelled replies to measure a judge on, got {len(replies)}")
    decisions = judge.judge(prompts, replies)
    return Calibration(
        judge=judge.identity,
        harmful=None if harmful is None else _counts([one.harmful for one in decisions], harmful),
        refusal=None if refusal is None else _counts([one.refusal for one in decisions], refusal),
        labels=labels,
    )


def log_cost(name: str, judge: Judge) -> None:
    """Say what a judge that is paid for has spent; nothing of one on this machine."""
    cost = getattr(judge, "cost", None)
    if cost is not None:
        log.info("%s: %s", name, cost)


def calibrate_judge(
    params: JudgeParams, labels: Path, what: str, *, root: Path, form: LabelForm = "ours"
) -> tuple[Calibration, Path]:
    """Measure the judge of ``params`` on labelled replies of ``form``, and write its file below ``root``.

    Raises:
        ParamsError: ``params.calibration`` does not say where it goes.
        JudgeError: the judge cannot be built, or there are no such labels.
        FormatError, EmptySample: see `read_labels`.
    """
    if params.calibration is None:
        raise ParamsError(
            "expected evaluate.judge.calibration (or adjudicator.calibration) to say where the error goes, got none",
            remedy="set it to a file in data/judges, such as data/judges/judge.json",
        )
    rows = read_labels(labels, form)
    judge = build(params)
    found = measure_judge(judge, rows.prompts, rows.replies, labels=what, harmful=rows.harmful, refusal=rows.refusal)
    log_cost("judge", judge)
    path = root / params.calibration
    path.parent.mkdir(parents=True, exist_ok=True)
    write_calibration(found, path)
    return found, path


def _counts(decided: Sequence[Label], truth: Sequence[bool]) -> ConfusionCounts:
    pairs = list(zip(decided, truth, strict=True))
    return ConfusionCounts(
        true_positives=sum(one == "yes" for one, is_so in pairs if is_so),
        positives=sum(truth),
        true_negatives=sum(one == "no" for one, is_so in pairs if not is_so),
        negatives=len(truth) - sum(truth),
    )


def calibration_of(params: JudgeParams, judge: Judge) -> Calibration | None:
    """What is known about a judge's error: exact for the tiny grammar's, else its file; None when never measured.

    Raises:
        JudgeError: the file is absent, or was measured on another judge.
        FormatError: it is malformed.
    """
    if params.kind == "grammar":
        return Calibration(judge.identity, exact=True, labels="the tiny family's grammar leaves no doubt")
    if params.calibration is None:
        return None
    if not params.calibration.is_file():
        raise JudgeError(
            f"expected the judge's calibration in {params.calibration}, got no such file",
            remedy="`safegene judge calibrate`, or leave evaluate.judge.calibration empty: it then cannot give a pass",
        )
    found = calibration_from(params.calibration)
    if found.judge != judge.identity:
        raise JudgeError(
            f"expected a calibration of judge {judge.identity}, got one of {found.judge}, in {params.calibration}",
            remedy="measure this judge, `safegene judge calibrate`: its prompt, phrases, weights or threshold differ",
        )
    return found


def calibration_from(path: Path) -> Calibration:
    """Read a calibration file.

    Raises:
        FormatError: it is not what the module says.
    """
    raw = strict_json(path.read_bytes(), where=str(path))
    keys = {"schema", "judge", "labels", "harmful", "refusal"}
    if not isinstance(raw, dict) or set(raw) != keys or raw["schema"] != SCHEMA:
        raise FormatError(f"expected a calibration of schema {SCHEMA} with keys {sorted(keys)}, got another, in {path}")
    return Calibration(
        judge=str(raw["judge"]),
        harmful=_read_counts(raw["harmful"], path),
        refusal=_read_counts(raw["refusal"], path),
        labels=str(raw["labels"]),
    )


def _read_counts(raw: Any, path: Path) -> ConfusionCounts | None:
    if raw is None:
        return None
    names = set(ConfusionCounts.__dataclass_fields__)
    if not isinstance(raw, dict) or set(raw) != names or any(type(count) is not int for count in raw.values()):
        raise FormatError(f"expected the counts {sorted(names)}, got {raw!r}, in {path}")
    try:
        return ConfusionCounts(**raw)
    except ValueError as error:
        raise FormatError(f"{error}, in {path}") from None


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write a calibration file; the same counts give the same bytes."""
    value = asdict(calibration) | {"schema": SCHEMA}
    del value["exact"]
    path.write_bytes(canonical_json(value) + b"\n")


@dataclass(frozen=True)
class Agreement:
    """How far a judge and people agree, over all labelled replies.

    Attributes:
        n: labelled replies.
        base_rate: share that people label yes; without it the next number says little.
        accuracy: share of replies on which judge and people agree.
        kappa: (accuracy - chance) / (1 - chance), with the agreement that chance gives at both rates (Cohen 1960);
            None where chance alone agrees on everything.
        bias: the judge's rate of yes less the people's, in -1..1.
    """

    n: int
    base_rate: float
    accuracy: float
    kappa: float | None
    bias: float


def agreement(counts: ConfusionCounts) -> Agreement:
    """Accuracy, kappa and bias of counts; an unscored reply counts as the wrong decision, as in `measure`.

    Raises:
        EmptySample: nothing was labelled.
    """
    n = counts.positives + counts.negatives
    if not n:
        raise EmptySample("expected labelled replies, got none")
    right = counts.true_positives + counts.true_negatives
    said = counts.true_positives + counts.negatives - counts.true_negatives
    by_chance = said * counts.positives + (n - said) * counts.negatives  # of n * n pairs
    kappa = None if by_chance == n * n else (right * n - by_chance) / (n * n - by_chance)
    return Agreement(n, counts.positives / n, right / n, kappa, (said - counts.positives) / n)


def describe_counts(what: str, counts: ConfusionCounts | None) -> str:
    """Sensitivity and specificity with 95% Wilson intervals, then how far judge and people agree."""
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
        found = agreement(counts)
        kappa = "not defined" if found.kappa is None else f"{found.kappa:.3f}"
        shown.append(f"accuracy {found.accuracy:.3f} at a base rate of {found.base_rate:.3f}, kappa {kappa}")
        shown.append(f"bias {100 * found.bias:+.1f} points (n {found.n})")
    return f"{what}: {', '.join(shown)}"
