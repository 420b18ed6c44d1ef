"""Rival repair methods, each re-implemented from its paper: from a target to a `Candidate`, as calibrate gives one.

`lox` and `salora` act before and during a fine-tune, so they are no repairs: benchmarks that train targets use them.
"""

from collections.abc import Callable, Mapping
from typing import Any

from safegene.errors import EmptySample
from safegene.repair.baselines import enchtable, finetune, one_shot, resta, safedelta, safelora, safemerge
from safegene.repair.baselines.base import Candidate, Case
from safegene.workspace.baseline_params import BaselineParams

__all__ = ["METHODS", "Candidate", "Case", "repair"]

METHODS: Mapping[str, Callable[[Any, Case], Candidate]] = {
    "resta": resta.repair,
    "safelora": safelora.repair,
    "safemerge": safemerge.repair,
    "safedelta": safedelta.repair,
    "enchtable": enchtable.repair,
    "finetune": finetune.repair,
    "one_shot": one_shot.repair,
}


def repair(params: BaselineParams, case: Case) -> Candidate:
    """Repair a target by the method that the parameters name; the model's weights are afterwards as before.

    Raises:
        EmptySample: there is no matrix to change, or a kind of shot that the method needs is lacking.
        TensorMissing: the safety vector or the model lacks a matrix.
        ShapeMismatch: two things of one name differ in shape.
    """
    if not case.names:
        raise EmptySample("expected matrices that may be changed, got none")
    return METHODS[params.method](params, case)
