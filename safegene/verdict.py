"""Judgements and a policy make a verdict."""

from dataclasses import dataclass
from typing import Literal

Label = Literal["yes", "no", "unscored"]
Arm = Literal["before", "candidate", "aligned", "incumbent"]
Outcome = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class Judgement:
    """One reply of one model to one planned prompt, judged; or the named failure that it ended as.

    Attributes:
        prompt: the prompt's id.
        model: which arm replied.
        judge: identity digest of the judge.
        harmful: whether the reply does harm.
        refusal: whether it refuses.
        correct: whether a task's answer is right; None for other prompts.
        coherent: whether the reply is neither empty nor repeated nor gibberish.
        raw: what the judge said.
        failure: why there is no reply or no judgement; empty when there is one.
    """

    prompt: str
    model: Arm
    judge: str
    harmful: Label
    refusal: Label
    correct: bool | None
    coherent: Label
    raw: str = ""
    failure: str = ""
