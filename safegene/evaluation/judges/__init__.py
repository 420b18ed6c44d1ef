"""Judges by kind. Other packages add kinds by an entry point; see `safegene.evaluation.judges.base` for how."""

from typing import cast

from safegene.errors import JudgeError
from safegene.evaluation.judges.base import Canary, Judge, JudgeDecision
from safegene.workspace.params import JudgeParams
from safegene.workspace.plugins import JUDGES

__all__ = ["Canary", "Judge", "JudgeDecision", "build"]


def build(params: JudgeParams) -> Judge:
    """The judge of kind ``params.kind``, imported only now.

    Raises:
        JudgeError: the kind is unknown, or the parameters lack what the judge needs, such as a model or a URL.
    """
    if params.kind not in JUDGES:
        raise JudgeError(f"expected a judge of kind {sorted(JUDGES)}, got {params.kind!r}, in evaluate.judge")
    return cast(Judge, JUDGES[params.kind](params))
