"""Limits, each with what it was chosen from, and the measurements that exceed them.

"The 16 tiny repairs" are the tiny family's eight fine-tunes at seeds 0 and 1, by a core of rank 1 in all four layers
(the template now takes the first half), judged on the validation split: fourteen came back (at most 4.2% harm and 1%
over-refusal), the two of a large change ("strong") did not. The method study is
the series of experiments before this pipeline. All are small models: a limit says what was seen, and is no law.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from safegene.workspace.parsing import Strict

MAX_LOSS = 0.03
"""KL left on safety or benign shots: the fourteen tiny repairs that came back ended at 0.019 or less, the two that did
not at 0.051 or more; three repairs of SmolLM2 that the gate refused ended at 0.062 or more on safety shots."""

MIN_CHANGED = 0.02
"""Share of replies that differ, below which a loss is no symptom: `calibrate` repairs no target that differs less."""

MAX_TASK_CHANGE = 0.2
"""``|W_t - W_a| / |W_a|``: the fourteen tiny repairs that came back lay at 0.13 or less, the two that did not at 0.27;
the method study found changes above 0.3 hard and of 0.1 not."""

UNRELATED_CHANGE = 0.7
"""The same for a checkpoint that is no fine-tune of this aligned model: half of 1.42, measured between the tiny aligned
models of two seeds (of independent weights it is the root of 2); the largest fine-tune lay at 0.28."""

MAX_COSINE = 0.0
"""Cosine of the task's change and the vector: below 0 in all 16 tiny repairs (-0.01 to -0.20), since what a fine-tune
loses points away from the vector; of unrelated changes it is 0 within a thousandth."""

MAX_OUTSIDE = 0.8
"""Share of the vector's energy that the repair does not use, or of the task's change where the vector has no factors:
tiny repairs of one layer alone came back (eight of eight) with 0.78 or less outside, of four with 0.82 one left 5%
harm."""

MIN_KEPT = 0.3
"""Share of the delta's energy that compression kept: in the method study, 0.17 (rounded to bf16) left twice the
harm on AdvBench that 0.54 (the same recipe in fp32) did; the limit is between the two."""

MIN_SURROGATES = 2
"""Degraded models behind the vector: in the method study, one gave 55% recovery; four, with finer coefficients, 84%."""

MIN_SHOTS = 32
"""Safety shots fitted: of twelve tiny repairs with 16 or fewer, four left 8% to 14% harm or 15% over-refusal, none of
four with 64. With so few the validation shots that choose are few too, and their loss looks good where it is not."""

MAX_FALL = 0.5
"""Share by which the objective fell between the last two measurements: at most 0.44 in the 16 tiny repairs, whose
learning rate ends at 0; a fit that falls faster than that was cut off."""

LIMITS = {
    "safety_after": MAX_LOSS,
    "benign_after": MAX_LOSS,
    "task_change": MAX_TASK_CHANGE,
    "cosine": MAX_COSINE,
    "outside": MAX_OUTSIDE,
    "unreached": MAX_OUTSIDE,
    "kept": MIN_KEPT,
    "surrogates": MIN_SURROGATES,
    "shots_fit": MIN_SHOTS,
    "fall": MAX_FALL,
}
LOSSES_UNRELIABLE = ("mismatches", "unrelated", "shots_fit")  # causes under which the losses cannot be believed

Outlook = Literal["reachable", "doubtful"]
Kind = Literal["symptom", "cause"]
Number = int | float


class Finding(Strict):
    """A measurement that exceeds its limit.

    Attributes:
        what: its name, as in ``measured``.
        kind: symptom or cause; see the package.
        measured: the number; None where it is not finite.
        limit: the constant that it exceeds.
        words: one sentence for a person.
        remedy: what may help.
    """

    what: str
    kind: Kind
    measured: Number | None
    limit: Number
    words: str
    remedy: str


class Diagnosis(Strict):
    """What `calibrate` writes into ``coefficients.json`` and reports show.

    Attributes:
        outlook: the forecast.
        findings: symptoms first.
        measured: name -> number, rounded to four significant digits; None where it is not finite.
        limits: name -> the constant that the number is held against.
        layers: layer -> what `matrices.by_layer` tells of it.
        unreached: kind of tensor -> share of what fine-tuning changed that lies there, where the vector has no factors;
            empty in files of a safegene that did not measure it.
    """

    outlook: Outlook
    findings: list[Finding]
    measured: dict[str, Number | None]
    limits: dict[str, Number]
    layers: dict[str, dict[str, Number | None]]
    unreached: dict[str, Number | None] = {}


def outlook(exceeded: Sequence[Finding]) -> Outlook:
    """The forecast; see the package for its rule."""
    doubtful = any(finding.kind == "symptom" or finding.what in LOSSES_UNRELIABLE for finding in exceeded)
    return "doubtful" if doubtful else "reachable"


def findings(measured: Mapping[str, Number], *, fitted: bool) -> tuple[Finding, ...]:
    """Everything measured that exceeds its limit, symptoms first; of the fit itself only where one was made."""
    return (*_symptoms(measured), *_causes(measured), *(_fit_causes(measured) if fitted else ()))


def _finding(what: str, kind: Kind, value: Number, limit: Number, words: str, remedy: str) -> Finding:
    measured = value if math.isfinite(value) else None
    return Finding(what=what, kind=kind, measured=measured, limit=limit, words=words, remedy=remedy)


def _symptoms(m: Mapping[str, Number]) -> Iterator[Finding]:
    for kind, of, remedy in (
        ("safety", "the aligned model's", "see the causes; raise calibrate.max_extra, or use more varied safety shots"),
        ("benign", "the fine-tune's own", "raise calibrate.benign_weight or calibrate.benign_shots"),
    ):
        loss, changed = m[f"{kind}_after"], m[f"{kind}_changed"]
        words = f"{kind} replies are still {loss:.3f} nats per token from {of} ({changed:.0%} of them differ)"
        if loss > MAX_LOSS and changed > MIN_CHANGED:
            yield _finding(f"{kind}_after", "symptom", loss, MAX_LOSS, words, remedy)


def _causes(m: Mapping[str, Number]) -> Iterator[Finding]:
    change = m["task_change"]
    if m["mismatches"] or change > UNRELATED_CHANGE:
        words = f"the target does not look like a fine-tune of this aligned model: its weights differ by {change:.0%}"
        remedy = "name the aligned model that it was tuned from in family.aligned"
        what, limit = ("mismatches", 0.0) if m["mismatches"] else ("unrelated", UNRELATED_CHANGE)
        yield _finding(what, "cause", m["mismatches"] or change, limit, words, remedy)
    elif change > MAX_TASK_CHANGE:
        words = f"fine-tuning changed the weights by {change:.0%} of their size, which is more than came back before"
        remedy = "fine-tune with a lower learning rate or fewer steps, or as a LoRA"
        yield _finding("task_change", "cause", change, MAX_TASK_CHANGE, words, remedy)
    if m["cosine"] >= MAX_COSINE:
        words = f"what fine-tuning changed does not point away from the safety vector (cosine {m['cosine']:+.3f})"
        remedy = "add a surrogate to degrade.surrogates that is tuned on data like the target's"
        yield _finding("cosine", "cause", m["cosine"], MAX_COSINE, words, remedy)
    for what, words, remedy in (
        ("outside", "the safety vector's energy lies in layers or matrices that the repair does not use",
         "lower select.threshold, or raise calibrate.max_extra"),
        ("unreached", "what fine-tuning changed lies in matrices for which the safety vector has no factors",
         "see vector.json for why they were skipped: keep degraded models in float32, or degrade all matrices"),
    ):  # fmt: skip
        if m[what] > MAX_OUTSIDE:
            yield _finding(what, "cause", m[what], MAX_OUTSIDE, f"{m[what]:.0%} of {words}", remedy)
    if m["kept"] < MIN_KEPT:
        words = f"the safety vector holds {m['kept']:.0%} of what tells the aligned from the degraded models"
        yield _finding(
            "kept", "cause", m["kept"], MIN_KEPT, words, "raise compress.rank; keep degraded models in float32"
        )
    if m["surrogates"] < MIN_SURROGATES:
        words = f"the safety vector was taken from {m['surrogates']} degraded model"
        remedy = "add surrogates to degrade.surrogates"
        yield _finding("surrogates", "cause", m["surrogates"], MIN_SURROGATES, words, remedy)


def _fit_causes(m: Mapping[str, Number]) -> Iterator[Finding]:
    if m["shots_fit"] < MIN_SHOTS:
        words = f"only {m['shots_fit']} safety shots were fitted"
        remedy = "raise calibrate.safety_shots, or add prompts to the fit split of safety.jsonl"
        yield _finding("shots_fit", "cause", m["shots_fit"], MIN_SHOTS, words, remedy)
    if m["fall"] > MAX_FALL:
        words = f"the objective was still falling when the fit ended, by {m['fall']:.0%} since the measurement before"
        yield _finding("fall", "cause", m["fall"], MAX_FALL, words, "raise calibrate.steps")
