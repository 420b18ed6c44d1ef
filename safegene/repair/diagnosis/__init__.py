"""Why a repair may fall short of the aligned model, in numbers, before the gate decides: nothing is trained or run.

Two kinds of finding. A *symptom* is what calibrating left on the validation shots; a *cause* is a property of the
fine-tune, the safety vector or the fit that has gone with symptoms before. Each has a limit, a constant that says
what it was chosen from. The outlook is a forecast by one rule: *doubtful* where there is a symptom, where the target is
not of the family, or where too few shots were fitted for the losses to tell; else *reachable*. It has no interval and
no error rate; the gate decides.

`matrices`: what the weights tell. `findings`: limits, and what is beyond them.
"""

import logging
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safegene.checkpoints.record import CheckpointRecord
from safegene.checkpoints.sources import ModelFiles
from safegene.repair.diagnosis.findings import LIMITS, findings, outlook
from safegene.repair.diagnosis.matrices import by_layer, measure_matrices, overall
from safegene.repair.fitting import Shot
from safegene.vectors.vector import SafetyVector

log = logging.getLogger(__name__)


def diagnose(
    payload: Mapping[str, Any],
    shots: Mapping[Any, Sequence[Shot]],
    vector: SafetyVector,
    used: Collection[str],
    *,
    root: Path,
    target: ModelFiles,
    records: tuple[CheckpointRecord, CheckpointRecord],
) -> dict[str, Any]:
    """The diagnosis of one calibrated target, as JSON: ``outlook, findings, measured, limits, layers``; it is logged.

    Args:
        payload: ``coefficients.json``.
        shots: of both splits.
        vector: the safety vector.
        used: matrices that the repair changes.
        root: the aligned model.
        target: the fine-tune.
        records: ``checkpoint.json`` of the two.
    """
    matrices = list(measure_matrices(root, target, vector, used))
    measured = overall(matrices) | of_fit(payload, shots)
    measured |= {"surrogates": len(set(vector.degraded)), "mismatches": mismatches(vector, *records)}
    found = findings(measured, fitted=payload["method"] == "safegene" and bool(payload["repaired"]))
    expected = outlook(found)
    for one in found:
        log.warning("%s: %s", one.what, one.words)
    log.info("forecast: %s; the gate decides", expected)
    return {
        "outlook": expected,
        "findings": [_rounded(asdict(one)) for one in found],
        "measured": _rounded(measured),
        "limits": LIMITS,
        "layers": {layer: _rounded(own) for layer, own in by_layer(matrices, payload["alphas"]).items()},
    }


BROKEN = sys.float_info.max


def of_fit(payload: Mapping[str, Any], shots: Mapping[Any, Sequence[Shot]]) -> dict[str, float]:
    """What the fit tells: losses and changed replies before and after, shots, steps, and how fast it still fell.

    A loss that is missing or no number (null in the payload) is as far off as the largest float, never 0.
    """
    before, after = (
        {
            what: {kind: BROKEN if one is None else one for kind, one in own.items()}
            for what, own in payload[arm].items()
        }
        for arm in ("before", "after")
    )
    found = {
        "safety_before": before["loss"].get("safety", 0.0),
        "safety_after": after["loss"].get("safety", BROKEN),
        "safety_changed": after["changed"].get("safety", BROKEN),
        "benign_after": after["loss"].get("benign", BROKEN),
        "benign_changed": after["changed"].get("benign", BROKEN),
        "task_after": after["loss"].get("task", 0.0),
        "steps": payload["steps"],
        "fall": last_fall(payload["history"]),
    }
    counts = {f"shots_{split}": len([s for s in some if s.kind == "safety"]) for split, some in shots.items()}
    return found | counts


def last_fall(history: Sequence[Sequence[float]]) -> float:
    """Share by which the objective fell between the last two measurements; 0 where the last is not the least."""
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
    return sum(one != other for one, other in pairs)


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Four significant digits: what lies below is not the measurement's but the machine's."""
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in values.items()}
