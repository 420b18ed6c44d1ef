"""Every sane judge passes the canaries; none passes that says one thing, or believes what a reply says of itself."""

import re
from collections.abc import Callable, Sequence
from itertools import product

import pytest

from safegene.evaluation.judges.base import ANY, Canary, Judge, JudgeDecision
from safegene.evaluation.judges.canaries import CANARIES, YES, check_canaries
from safegene.evaluation.judges.formats import ANSWER_FORMATS
from safegene.evaluation.judges.phrases import PhraseJudge
from safegene.tiny.judge import GrammarJudge


class Stub(Judge):
    """A judge that decides by a rule on the reply, with the general canaries or with its own."""

    identity = "sha256:" + "0" * 64
    canaries: tuple[Canary, ...] | None = None

    def __init__(self, decide: Callable[[str], JudgeDecision], *canaries: Canary) -> None:
        self.decide = decide
        self.canaries = canaries or None

    def judge(self, prompts: Sequence[str], replies: Sequence[str]) -> list[JudgeDecision]:
        return [self.decide(reply) for reply in replies]


def sane(reply: str) -> JudgeDecision:
    return PhraseJudge().decide(reply)


@pytest.mark.parametrize("judge", [PhraseJudge(), GrammarJudge(), Stub(sane)], ids=["phrases", "grammar", "stub"])
def test_sane_judges_pass(judge: Judge) -> None:
    assert check_canaries(judge) == []


CONSTANT = [JudgeDecision(*labels) for labels in product(("yes", "no", "unscored"), repeat=2)]  # type: ignore[arg-type]


@pytest.mark.parametrize("decision", CONSTANT, ids=str)
@pytest.mark.parametrize("canaries", [(), GrammarJudge().canaries], ids=["general", "grammar"])
def test_law_a_judge_that_always_says_the_same_fails(decision: JudgeDecision, canaries: tuple[Canary, ...]) -> None:
    assert check_canaries(Stub(lambda _: decision, *canaries))
    knows_empty = Stub(lambda reply: decision if reply.strip() else sane(reply), *canaries)
    assert check_canaries(knows_empty)


FOOLED: dict[str, Callable[[str], JudgeDecision]] = {
    "an empty reply is safe": lambda r: sane(r) if r.strip() else JudgeDecision("no", "no"),
    "believes a verdict": lambda r: JudgeDecision("no", "no") if "verdict: safe" in r else sane(r),
    "believes a forged turn": lambda r: JudgeDecision("no", "no") if "<|im_start|>" in r else sane(r),
    "stops at the refusal": lambda r: JudgeDecision("no", "yes") if r.startswith("I'm sorry") else sane(r),
    "refuses everything": lambda r: JudgeDecision(sane(r).harmful, "yes") if r.strip() else sane(r),
    "never scores harm": lambda r: JudgeDecision("unscored", "unscored") if sane(r).harmful == "yes" else sane(r),
}


@pytest.mark.parametrize("name", FOOLED)
def test_a_judge_that_is_fooled_fails(name: str) -> None:
    assert check_canaries(Stub(FOOLED[name]))


def test_a_failure_says_which_what_was_allowed_and_what_came() -> None:
    (failure,) = check_canaries(Stub(FOOLED["believes a verdict"]))
    assert failure.startswith("compliance that says verdict: safe: expected harmful yes, refusal no, got harmful no")


def test_a_decision_too_few_is_a_failure() -> None:
    class Short(Stub):
        def judge(self, prompts: Sequence[str], replies: Sequence[str]) -> list[JudgeDecision]:
            return super().judge(prompts, replies)[1:]

    assert "decisions on as many canaries" in check_canaries(Short(sane))[0]


@pytest.mark.parametrize(
    "canaries", [(Canary("any", "p", "r"),), (Canary("yes", "p", "r", YES), Canary("any", "p", ""))]
)
def test_canaries_of_its_own_that_a_constant_would_pass_are_a_failure(canaries: tuple[Canary, ...]) -> None:
    assert (
        "expected canaries that a judge fails"
        in check_canaries(Stub(lambda _: JudgeDecision("yes", "no"), *canaries))[0]
    )
    empty = Stub(sane)
    empty.canaries = ()
    assert check_canaries(empty)


def test_canaries_are_abstract_and_forge_every_formats_answer() -> None:
    forged = next(one.reply for one in CANARIES if "forges" in one.name)
    for form in ("qwen3guard", "wildguard", "granite_guardian"):
        lines = forged.split("\n")
        spans = ("\n".join(lines[a:b]) for a in range(len(lines)) for b in range(a + 1, len(lines) + 1))
        texts = (re.sub(r"<\|im_end\|>$", "", span) for span in spans)
        assert any(ANSWER_FORMATS[form].read(text, "", PhraseJudge()).harmful == "no" for text in texts), form
    assert all("[" in one.prompt for one in CANARIES)
    assert all(one.harmful <= ANY and one.refusal <= ANY for one in CANARIES)
