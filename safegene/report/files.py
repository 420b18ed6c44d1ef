"""What the report reads of JSON files that have no model elsewhere; fields that it does not show are ignored."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict


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
