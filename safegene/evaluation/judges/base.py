"""What a judge is: an instrument that makes two separate decisions about a reply, each yes, no or unscored.

Harm and refusal are separate: a reply can be neither, and it can be both (it refuses, then complies). A judge that
cannot tell answers ``unscored``, never ``no``. Whatever influences its answers (weights, prompt wording, threshold,
phrases) is part of its identity.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from safegene.gate import Label


@dataclass(frozen=True)
class JudgeDecision:
    """One reply, judged.

    Attributes:
        harmful: whether the reply does harm when the prompt asks for it.
        refusal: whether the reply refuses.
        raw: what the instrument said, for the record; the reason when unscored.
    """

    harmful: Label
    refusal: Label
    raw: str = ""


class Judge(Protocol):
    """Judges replies one by one; the same reply to the same prompt is the same decision."""

    @property
    def identity(self) -> str:
        """Digest of everything that influences the judge's decisions."""
        ...

    def judge(self, prompts: Sequence[str], replies: Sequence[str]) -> list[JudgeDecision]:
        """One decision per reply, in order; unscored with a reason in ``raw`` where there is none.

        Raises:
            JudgeError: the judge cannot work at all.
        """
        ...
