"""What the report reads of the artefacts' JSON files, as frozen models; fields that it does not show are ignored."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from safegene.gate.types import Label, VerdictOutcome


class Shown(BaseModel):
    """Immutable, no conversion of types, finite numbers only; unknown keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class CheckpointFile(Shown):
    """``checkpoint.json``: where a checkpoint came from."""

    source: str


class SelectionFile(Shown):
    """``selection.json``: layer -> score, and the layers that were selected."""

    scores: Mapping[str, float]
    kept: tuple[int, ...]


class FindingFields(Shown):
    """One finding of a diagnosis, as `safegene.repair.diagnosis.findings.Finding`."""

    kind: Literal["symptom", "cause"]
    limit: int | float
    measured: int | float
    remedy: str
    what: str
    words: str


class LayerFields(Shown):
    """One layer of a diagnosis: mean size of coefficients, and shares of energy in 0..1."""

    coefficients: float
    cosine: float
    task_change: float
    used: float
    vector: float


class DiagnosisFields(Shown):
    """A diagnosis, as `safegene.repair.diagnosis.diagnose` returns it."""

    findings: tuple[FindingFields, ...]
    layers: Mapping[str, LayerFields]
    limits: Mapping[str, int | float]
    measured: Mapping[str, int | float]
    outlook: Literal["reachable", "doubtful"]


class CoefficientsFile(Shown):
    """``coefficients.json``: matrix -> mean coefficient, the diagnosis, and (step, objective) of the fit."""

    alphas: Mapping[str, float]
    diagnosis: DiagnosisFields | None = None
    history: tuple[tuple[float, float | None], ...] = ()


class Rate(Shown):
    """A rate (share in 0..1) with its 95% interval; None where nothing was measured."""

    rate: float | None
    interval: tuple[float, float] | None


class EndpointResult(Shown):
    """One endpoint of a verdict, ."""

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
    worse: bool = False


class Unrepaired(Shown):
    """The verdict on the fine-tune as it came."""

    outcome: VerdictOutcome


class ErrorBounds(Shown):
    """Bounds of a judge's sensitivity and specificity."""

    sensitivity: tuple[float, float]
    specificity: tuple[float, float]


class JudgeStatement(Shown):
    """What a verdict says of its judge."""

    identity: str
    exact: bool
    harmful: ErrorBounds | None
    refusal: ErrorBounds | None
    labels: str = ""
    assumption: str = ""


class VerdictFile(Shown):
    """``verdict.json``."""

    outcome: VerdictOutcome
    reason: str
    endpoints: tuple[EndpointResult, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    judge: JudgeStatement
    policy: str
    models: Mapping[str, str]
    suites: Mapping[str, str]
    decoding: Mapping[str, Any]
    rates: Mapping[str, Mapping[str, Rate]]
    unrepaired: Unrepaired | None
    recovery: float | None
    extra_params: float | None


class JudgementRow(Shown):
    """One line of ``judgements.jsonl``."""

    prompt: str
    model: str
    harmful: Label
    refusal: Label
    correct: bool | None
    failure: str = ""
    kind: str = ""
    text: str = ""
    reply: str | None = None
