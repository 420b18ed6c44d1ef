"""What a verdict is made from (a plan, judgements, a judge's measured error) and what it is."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import ConfigDict

from safegene.gate.statistics import clopper_pearson_lower, clopper_pearson_upper

Label = Literal["yes", "no", "unscored"]
Arm = Literal["before", "candidate", "aligned", "incumbent", "repeat"]
VerdictOutcome = Literal["pass", "fail", "inconclusive"]
JudgedLabel = Literal["harmful", "refusal"]
STRICT = ConfigDict(extra="forbid")  # for whoever reads these from JSON: see `safegene.gate.reading`


@dataclass(frozen=True)
class Judgement:
    """One reply of one model to one planned prompt, judged; or the named failure that it ended as.

    Attributes:
        prompt: the prompt's id.
        model: which arm replied.
        judge: identity digest of the judge.
        harmful: whether the reply does harm.
        refusal: whether it refuses.
        correct: whether a task's answer is right; None for other prompts.
        coherent: whether the reply is neither empty nor repeated nor gibberish.
        raw: what the judge said.
        failure: why there is no reply or no judgement; empty when there is one.
        weights: content digest of the model that replied; it must be the plan's for this arm.
        again: what the adjudicator says of harm (of refusal, for a look-alike); None where it was not asked.
        adjudicator: identity digest of the judge that was asked again.
    """

    prompt: str
    model: Arm
    judge: str
    harmful: Label
    refusal: Label
    correct: bool | None
    coherent: Label
    raw: str = ""
    failure: str = ""
    weights: str = ""
    again: Label | None = None
    adjudicator: str = ""


@dataclass(frozen=True)
class PlannedPrompt:
    """One prompt that every arm must answer; ``digest`` is of its normalised text, so that repeats show."""

    __pydantic_config__ = STRICT

    id: str
    kind: str
    category: str
    behaviour: str
    digest: str


@dataclass(frozen=True)
class ConfusionCounts:
    """A judge's decisions beside human labels: how many of the labelled yes and no it got right.

    Se = true_positives / positives, Sp = true_negatives / negatives; bounds are Clopper-Pearson's.

    Raises:
        ValueError: more hits than there are.
    """

    __pydantic_config__ = STRICT

    true_positives: int
    positives: int
    true_negatives: int
    negatives: int

    def __post_init__(self) -> None:
        if not (0 <= self.true_positives <= self.positives and 0 <= self.true_negatives <= self.negatives):
            raise ValueError(f"expected hits within their totals, got {asdict(self)}")

    def sensitivity(self, alpha: float) -> tuple[float, float]:
        """Lower and upper bound of Se, each at level ``alpha``; (0, 1) when nothing was labelled yes."""
        return _bounds(self.true_positives, self.positives, alpha)

    def specificity(self, alpha: float) -> tuple[float, float]:
        """Lower and upper bound of Sp, each at level ``alpha``; (0, 1) when nothing was labelled no."""
        return _bounds(self.true_negatives, self.negatives, alpha)


def _bounds(right: int, n: int, alpha: float) -> tuple[float, float]:
    return (clopper_pearson_lower(right, n, alpha), clopper_pearson_upper(right, n, alpha)) if n else (0.0, 1.0)


@dataclass(frozen=True)
class Calibration:
    """A judge's measured error, bound to the judge's identity; ``exact`` for one without error by construction.

    ``labels`` says what it was measured on. A decision without counts is uncalibrated.
    """

    __pydantic_config__ = STRICT

    judge: str
    exact: bool = False
    harmful: ConfusionCounts | None = None
    refusal: ConfusionCounts | None = None
    labels: str = ""


@dataclass(frozen=True)
class Plan:
    """What was going to be asked, of whom, by which judge, under which policy: fixed before the first reply.

    Attributes:
        prompts: every prompt that every arm must answer.
        models: arm -> content digest of its weights, adapter, tokenizer and template.
        judge: identity digest of the judge.
        calibration: the judge's error; None when it was never measured.
        policy: digest of the gate's parameters.
        suites: name -> digest of the prompt sets.
        decoding: how replies were made, as plain JSON values.
        adjudicator: identity digest of the judge of discordant pairs; empty where there is none.
        adjudication: that judge's error; None when it was never measured.
        canaries: replies with a known label on which a judge went wrong before the run.
        attempt: 1 for the first candidate of this fine-tune that is judged, 2 for the next.
    """

    prompts: tuple[PlannedPrompt, ...]
    models: Mapping[str, str]
    judge: str
    calibration: Calibration | None
    policy: str
    suites: Mapping[str, str] = field(default_factory=dict)
    decoding: Mapping[str, Any] = field(default_factory=dict)
    adjudicator: str = ""
    adjudication: Calibration | None = None
    canaries: tuple[str, ...] = ()
    attempt: int = 1

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return asdict(self) | {"prompts": [asdict(one) for one in self.prompts], "canaries": list(self.canaries)}


@dataclass(frozen=True)
class EndpointResult:
    """One question and its answer.

    Attributes:
        name: which of the six.
        outcome: pass, fail or inconclusive.
        estimate: the rate or paired difference, lost prompts counted against the candidate; None without evidence.
        bound: its one-sided confidence bound, which decides; None without evidence.
        limit: what ``bound`` may at most be (after correction for the judge's error).
        n: independent units (behaviours, or prompts that belong to none).
        reason: one sentence: why this outcome.
        reference: the arm compared with; empty for the absolute cap.
        newly_bad: units bad in the candidate and good in the reference.
        newly_good: the opposite.
        lost: prompts without a usable judgement in either arm.
        p_worse: exact one-sided McNemar p-value for "worse".
        worse: significantly worse, though within the margin where the outcome is pass.
    """

    name: str
    outcome: VerdictOutcome
    estimate: float | None
    bound: float | None
    limit: float
    n: int
    reason: str
    reference: str = ""
    newly_bad: int = 0
    newly_good: int = 0
    lost: int = 0
    p_worse: float | None = None
    worse: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether the candidate may replace what is live, and why.

    Attributes:
        outcome: pass only if every endpoint passes; fail if any fails; else inconclusive.
        reason: the first rules that did not pass, in one sentence.
        endpoints: the six.
        failed: names of the endpoints that failed.
        problems: what is wrong with the evidence as a whole; any problem makes every endpoint inconclusive.
        warnings: worse but within the margin; categories harmed.
        judge: identity and, where measured, bounds of Se and Sp.
        policy: digest of the policy; ``models``, ``suites``, ``decoding``: as in the plan.
    """

    outcome: VerdictOutcome
    reason: str
    endpoints: tuple[EndpointResult, ...]
    failed: tuple[str, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    judge: Mapping[str, Any]
    policy: str
    models: Mapping[str, str]
    suites: Mapping[str, str]
    decoding: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain JSON values."""
        return asdict(self)
