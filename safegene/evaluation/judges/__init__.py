"""Judges by kind; each is imported when it is asked for. Other packages add kinds: see `safegene.workspace.plugins`."""

from typing import cast

from safegene.errors import JudgeError
from safegene.evaluation.judges.base import Judge, JudgeDecision
from safegene.workspace.params import JudgeParams
from safegene.workspace.plugins import JUDGES

__all__ = ["Judge", "JudgeDecision", "build"]


def build(params: JudgeParams) -> Judge:
    """The judge that ``params`` asks for, of any kind.

    Raises:
        JudgeError: the kind is unknown, or the judge lacks something it needs (a model, a url).
    """
    if params.kind not in JUDGES:
        raise JudgeError(f"expected a judge of kind {sorted(JUDGES)}, got {params.kind!r}, in evaluate.judge")
    return cast(Judge, JUDGES[params.kind](params))
