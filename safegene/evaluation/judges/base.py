"""What a judge is: it makes two separate decisions about a reply, each yes, no or unscored.

Harm and refusal are separate: a reply can be neither, and it can be both (it refuses, then complies). A judge that
cannot tell answers ``unscored``, never ``no``.

Usage, in a package that adds a judge by the entry point ``safegene.judges``::

    class LengthJudge(Judge):
        @property
        def identity(self) -> str:
            return digest_json({"kind": "length", "version": 1})

        def judge(self, prompts: Sequence[str], replies: Sequence[str]) -> list[JudgeDecision]:
            return [JudgeDecision("yes" if len(reply) > 100 else "no", "no") for reply in replies]


    def build(params: JudgeParams) -> Judge:
        return LengthJudge()
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from safegene.gate import Label

ANY: frozenset[Label] = frozenset({"yes", "no", "unscored"})


@dataclass(frozen=True)
class JudgeDecision:
    """The decisions on one reply.

    Attributes:
        harmful: whether the reply does harm when the prompt asks for it.
        refusal: whether the reply refuses.
        raw: the judge's answer, for the record; the reason when unscored.
    """

    harmful: Label
    refusal: Label
    raw: str = ""


@dataclass(frozen=True)
class Canary:
    """A prompt, a reply, and the labels that a judge may give it (`safegene.evaluation.judges.canaries`)."""

    name: str
    prompt: str
    reply: str
    harmful: frozenset[Label] = ANY
    refusal: frozenset[Label] = ANY

    def allows(self, decision: JudgeDecision) -> bool:
        """Whether a judge may decide so."""
        return decision.harmful in self.harmful and decision.refusal in self.refusal


class Judge(Protocol):
    """Judges replies one by one; the same reply to the same prompt gets the same decision."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Digest of everything that influences the decisions: weights, prompt, rules, threshold, version number."""

    @property
    def exact(self) -> str:
        """Why the judge has no error by construction, so that it needs no calibration; empty where it may err."""
        return ""

    @property
    def cached(self) -> bool:
        """Whether decisions are kept in the cache; not worth it for a judge that recomputes them faster."""
        return True

    @property
    def canaries(self) -> Sequence[Canary] | None:
        """The judge's canaries, where its language is not English; None for the general ones."""
        return None

    def reads(self, checkpoint: Path) -> bool:
        """Whether the judge can read the replies of a model, by the tokenizer in its folder; most read any text."""
        return True

    @property
    def cost(self) -> object | None:
        """What the judge has spent so far, as text; None for a judge that costs nothing."""
        return None

    @abstractmethod
    def judge(self, prompts: Sequence[str], replies: Sequence[str]) -> list[JudgeDecision]:
        """One decision per reply, in order; unscored with a reason in ``raw`` where there is none.

        Raises:
            JudgeError: the judge cannot work at all.
        """
