"""Rival repair methods, each re-implemented from its paper: from a target to a `Candidate`, as calibrate gives one.

A method registers itself as an entry point of the group ``safegene.baselines`` (see `safegene.workspace.plugins`), so
an installed package can add one. Methods that act before or during a fine-tune are in studies/recovery.
"""

from typing import cast

from safegene.errors import EmptySample
from safegene.repair.baselines.base import Candidate, Case, Method
from safegene.workspace.baseline_params import BaselineParams
from safegene.workspace.plugins import BASELINES

__all__ = ["Candidate", "Case", "Method", "repair"]


def repair(params: BaselineParams, case: Case) -> Candidate:
    """Repair a target by the method that the parameters name; the model's weights are afterwards as before.

    Raises:
        EmptySample: there is no matrix to change, or a kind of shot that the method needs is lacking.
        TensorMissing: the safety vector or the model lacks a matrix.
        ShapeMismatch: two things of one name differ in shape.
    """
    if not case.names:
        raise EmptySample("expected matrices that may be changed, got none")
    method = cast(Method[BaselineParams], BASELINES[params.method])
    return method.repair(params, case)
