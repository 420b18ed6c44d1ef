"""The diagnosis of one calibrated target: what was measured, what exceeds its limit, and the forecast."""

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from safegene.checkpoints.record import CheckpointRecord
from safegene.checkpoints.sources import ModelFiles
from safegene.checkpoints.structure import Structure
from safegene.repair.coefficients_file import OURS, CoefficientsFile, json_safe
from safegene.repair.diagnosis.findings import LIMITS, Diagnosis, Number, findings, outlook
from safegene.repair.diagnosis.matrices import by_layer, changes_elsewhere, measure_matrices, overall, unreached
from safegene.repair.shots import Shots
from safegene.vectors.vector import SafetyVector

log = logging.getLogger(__name__)
BROKEN = 1e9  # nats per token, in place of a loss that is missing or no finite number; a real one is far below


def _forecast_words(forecast: str, exceeded: Sequence[str]) -> str:
    """The forecast in a line of a log."""
    if forecast == "doubtful":
        return f"doubtful, the repair may not pass, since these are beyond their limits: {', '.join(exceeded)}"
    beyond = f", although these are beyond their limits: {', '.join(exceeded)}" if exceeded else ""
    return f"the repair is close enough on the validation shots{beyond}"


def diagnose(
    content: CoefficientsFile,
    shots: Shots,
    vector: SafetyVector,
    used: Collection[str],
    *,
    root: Path,
    structure: Structure,
    target: ModelFiles,
    records: tuple[CheckpointRecord, CheckpointRecord],
) -> Diagnosis:
    """Diagnose one calibrated target, and log the findings.

    Args:
        content: ``coefficients.json``, without a diagnosis.
        shots: of both splits.
        vector: the safety vector.
        used: matrices that the repair changes.
        root: folder of the aligned model.
        structure: its matrices.
        target: files of the fine-tune.
        records: ``checkpoint.json`` of the aligned model and of the target.
    """
    matrices = list(measure_matrices(root, target, structure, vector, used))
    elsewhere = changes_elsewhere(root, target, structure)
    measured: dict[str, Number] = {**overall(matrices, elsewhere), **fit_measures(content, shots)}
    measured |= {"surrogates": len(set(vector.degraded)), "mismatches": mismatches(vector, *records)}
    exceeded = findings(measured, fitted=content.method == OURS and content.repaired)
    forecast = outlook(exceeded)
    for finding in exceeded:
        log.warning("%s: %s", finding.what, finding.words)
    words = _forecast_words(forecast, [finding.what for finding in exceeded])
    log.info("forecast: %s; the gate decides, by its own prompts", words)
    alphas = {name: math.nan if alpha is None else alpha for name, alpha in content.alphas.items()}
    return Diagnosis(
        outlook=forecast,
        findings=[finding.model_copy(update=_rounded(finding.model_dump())) for finding in exceeded],
        measured=_rounded(measured),
        limits=dict(LIMITS),
        unreached=_rounded(unreached(matrices, elsewhere)),
        layers={layer: _rounded(values) for layer, values in by_layer(matrices, alphas).items()},
    )


def fit_measures(content: CoefficientsFile, shots: Shots) -> dict[str, Number]:
    """What the fit tells: losses and changed replies before and after, shots, steps, and how fast it still fell.

    A loss that is missing or null is `BROKEN`, never 0.
    """
    before, after = content.before, content.after
    measures: dict[str, Number] = {
        "safety_before": _number(before.loss, "safety", 0.0),
        "safety_after": _number(after.loss, "safety", BROKEN),
        "safety_changed": _number(after.changed, "safety", BROKEN),
        "benign_after": _number(after.loss, "benign", BROKEN),
        "benign_changed": _number(after.changed, "benign", BROKEN),
        "task_after": _number(after.loss, "task", 0.0),
        "steps": content.steps,
        "fall": last_fall(content.history),
    }
    return measures | {f"shots_{split}": sum(shot.kind == "safety" for shot in rows) for split, rows in shots.items()}


def _number(values: Mapping[str, float | None], kind: str, missing: float) -> float:
    value = values.get(kind, missing)
    return BROKEN if value is None else value


def last_fall(history: Sequence[tuple[int, float | None]]) -> float:
    """Share by which the objective fell between the last two measurements; 0 where the last is not the lowest."""
    values = [BROKEN if value is None else value for _, value in history]
    if len(values) < 2 or values[-1] > min(values) or values[-2] <= 0.0:
        return 0.0
    return 1.0 - values[-1] / values[-2]


def mismatches(vector: SafetyVector, family: CheckpointRecord, target: CheckpointRecord) -> int:
    """How many digests say that vector, aligned model and target are not of one family.

    The vector's aligned model and architecture against the family's, the target's architecture, a LoRA's base.
    """
    pairs = [
        (vector.aligned, family.digest),
        (vector.architecture, family.architecture),
        (vector.architecture, target.architecture),
        (target.base or family.digest, family.digest),
    ]
    return sum(digest != expected for digest, expected in pairs)


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Four significant digits, since lower ones differ between machines; None for what is not finite."""
    return {key: json_safe(float(f"{v:.4g}")) if isinstance(v, float) else v for key, v in values.items()}
