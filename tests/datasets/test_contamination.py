"""Comparing prompt sets: what counts as the same text, and what as contamination."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safegene.datasets.contamination import check_contamination, normalised
from safegene.datasets.prompts import Prompt
from safegene.errors import ContaminatedSample


def prompt(text: str, *, name: str = "x", behaviour: str = "") -> Prompt:
    return Prompt(id=name, prompt=text, kind="harmful", category="c", behaviour=behaviour, split="test")


def test_normalising_sees_through_disguises() -> None:
    assert normalised("How\u200b to,  V a O?!") == normalised("how TO v A \uff4f") == "how to v a o"


@pytest.mark.parametrize(
    ("one", "other"),
    [("what is 5 + 3 ?", "what is 5 - 3 ?"), ("\u0915\u093f", "\u0915\u0940"), ("x < 2", "x > 2")],
)
def test_normalising_keeps_different_prompts_apart(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


@given(st.text())
def test_law_normalising_twice_changes_nothing(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


def check(tested: list[Prompt], fitted: list[Prompt]) -> None:
    check_contamination(tested, fitted, ngram=4, max_overlap=0.5, where="gate.jsonl")


def test_disjoint_sets_pass() -> None:
    check([prompt("how to V a O ?", behaviour="b1")], [prompt("how to W a P ?", behaviour="b2"), prompt("x")])
    check([prompt("a b c d e f")], [])


def test_the_same_text_the_same_behaviour_and_the_same_ngrams_are_contamination() -> None:
    with pytest.raises(ContaminatedSample, match=r"the same text in g = f, in gate\.jsonl"):
        check([prompt("How to V a O", name="g")], [prompt("how to v a o !", name="f")])
    with pytest.raises(ContaminatedSample, match="the same behaviour"):
        check([prompt("one", behaviour="b")], [prompt("two", behaviour="b")])
    with pytest.raises(ContaminatedSample, match=r"4-grams in x \(2 of 3\)"):
        check([prompt("please tell me how to start")], [prompt("please tell me how to stop")])


def test_half_the_ngrams_are_still_allowed_and_short_prompts_have_none() -> None:
    check([prompt("a b c d e")], [prompt("a b c d")])
    check([prompt("a b c")], [prompt("a b c d")])
