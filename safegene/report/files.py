"""What the report reads of JSON files, as frozen models; fields that it does not show are ignored.

The complete models (`CheckpointRecord`, `Selection`, `CoefficientsFile`) are stricter than a report needs, and two of
them import torch, which `safegene status` must not.
"""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from safegene.repair.diagnosis.findings import Diagnosis


class View(BaseModel):
    """Immutable, no conversion of types, finite numbers only; unknown keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class CheckpointView(View):
    """``checkpoint.json``: where a checkpoint came from."""

    source: str


class SelectionView(View):
    """``selection.json``: layer -> score, and the layers that were selected."""

    scores: Mapping[str, float]
    kept: tuple[int, ...]


class CoefficientsView(View):
    """``coefficients.json`` of a candidate.

    Attributes:
        alphas: matrix -> mean coefficient; None where it is not finite.
        repaired: whether the adapter changes anything.
        diagnosis: None in files of a safegene that made none.
        history: (steps, objective on the validation shots) of the fit.
    """

    alphas: Mapping[str, float | None]
    repaired: bool
    diagnosis: Diagnosis | None = None
    history: tuple[tuple[int, float | None], ...] = ()
