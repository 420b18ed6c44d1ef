"""``coefficients.json`` of a candidate: what was fitted, how it was reached, and the diagnosis.

It holds no clock, so the same inputs give the same bytes on the same machine. A number that JSON has no form for (the
loss of a change that broke the model) is null.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from safegene.checkpoints.checkpoint import layer_of
from safegene.repair.diagnosis.findings import Diagnosis
from safegene.repair.divergence import ShotLosses
from safegene.repair.mining import Mining
from safegene.repair.shots import Shots
from safegene.repair.target import RepairResult
from safegene.vectors.linalg import Patch
from safegene.workspace.digest import canonical_json
from safegene.workspace.params import CalibrateParams
from safegene.workspace.parsing import Strict

OURS = "safegene"  # the method where no baseline is named


class LossesRecord(Strict):
    """`ShotLosses`, rounded: nats per token and shares, by kind of shot."""

    loss: dict[str, float | None]
    changed: dict[str, float | None]


class CoefficientsFile(Strict):
    """The content of ``coefficients.json``.

    Attributes:
        method: ``safegene``, or the baseline's name.
        alphas: matrix name -> how much of the safety vector, for pictures.
        coefficients: matrix name -> the numbers fitted: scalars, or ``left`` and ``right`` of a core.
        trained: how many numbers were fitted.
        repaired: whether the adapter changes anything.
        reason: why it does not; else empty.
        steps: optimiser steps behind the coefficients.
        size: part of the fitted change that is kept; see `smallest_safe_scale`. 0 where nothing was fitted.
        history: (steps done, objective on the validation shots) of every measurement.
        before: the unrepaired target on the validation shots.
        after: the repaired one.
        facts: what a baseline chose; of a fit ``learning_rate``, where it was lowered.
        shots: split -> prompt ids.
        seed: of the fit.
        extra_params: the repair's numbers as a share of the model's parameters.
        mining: the rounds of mining, with the ids of the shots that each added; None where nothing was mined.
        diagnosis: see `safegene.repair.diagnosis`; None in files of a safegene that made none.
    """

    method: str
    alphas: dict[str, float | None]
    coefficients: dict[str, Any]
    trained: int
    repaired: bool
    reason: str
    steps: int
    size: float
    history: list[tuple[int, float | None]]
    before: LossesRecord
    after: LossesRecord
    facts: dict[str, Any]
    shots: dict[str, list[str]]
    seed: int
    extra_params: float
    mining: Mining | None = None
    diagnosis: Diagnosis | None = None

    @property
    def content(self) -> bytes:
        """The bytes of the file: canonical JSON and a newline."""
        return canonical_json(self.model_dump(mode="json", exclude_none=False)) + b"\n"


def coefficients_file(
    params: CalibrateParams, result: RepairResult, shots: Shots, patch: Patch, share: float
) -> CoefficientsFile:
    """The file of a repair, without its diagnosis.

    Args:
        params: of the calibration.
        result: what repairing gave.
        shots: of both splits.
        patch: the adapter's factors, zeros where nothing was repaired.
        share: the adapter's numbers over the model's parameters.
    """
    fitted = result.fitted
    return CoefficientsFile(
        method=params.baseline.method if params.baseline else OURS,
        alphas=json_safe(fitted.alphas) if fitted else dict.fromkeys(patch, 0.0),
        coefficients=json_safe(fitted.coefficients) if fitted else {},
        trained=fitted.trained if fitted else 0,
        repaired=fitted is not None,
        reason=result.reason,
        steps=fitted.steps if fitted else 0,
        size=fitted.scale if fitted else 0.0,
        history=[(step, _rounded(value, 6)) for step, value in fitted.history] if fitted else [],
        before=_losses(result.before),
        after=_losses(result.after),
        facts=json_safe(result.facts),
        shots={split: [shot.id for shot in rows] for split, rows in shots.items()},
        seed=params.seed,
        extra_params=share if fitted else 0.0,
        mining=result.mining,
    )


def direction_table(sizes: Mapping[str, Sequence[float]]) -> str:
    """``coefficients.csv``: matrix, layer, direction, and how much of it is in the change."""
    rows = [
        f"{name},{layer_of(name)},{direction},{size}"
        for name, matrix_sizes in sizes.items()
        for direction, size in enumerate(matrix_sizes)
    ]
    return "\n".join(["matrix,layer,direction,alpha", *rows]) + "\n"


def json_safe(value: Any) -> Any:
    """The same value with None for every NaN and infinity, and lists for tuples."""
    if isinstance(value, Mapping):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _losses(losses: ShotLosses) -> LossesRecord:
    return LossesRecord(
        loss={kind: _rounded(value, 4) for kind, value in losses.loss.items()},
        changed={kind: _rounded(value, 4) for kind, value in losses.changed.items()},
    )


def _rounded(value: float, digits: int) -> float | None:
    return round(value, digits) if math.isfinite(value) else None
