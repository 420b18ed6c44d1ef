import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safegene.datasets.contamination import check_contamination, normalised
from safegene.datasets.prompts import Prompt, read_prompts
from safegene.errors import ArtifactError, ContaminatedSample, EmptySample, FormatError
from safegene.workspace.digest import digest_file

ROW = {"id": "a", "prompt": "how to V a O ?", "kind": "harmful", "category": "c", "behaviour": "b", "split": "fit"}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def prompt(text: str, *, name: str = "x", behaviour: str = "") -> Prompt:
    return Prompt(id=name, prompt=text, kind="harmful", category="c", behaviour=behaviour, split="test")


def test_rows_come_back_in_order_with_the_digest_of_the_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", ROW, ROW | {"id": "b", "kind": "task", "split": "test", "response": "yes"})
    found = read_prompts(path)
    assert [row.id for row in found.rows] == ["a", "b"]
    assert found.digest == digest_file(path)
    assert found.where(kind="task") == found.where(split="test") == found.rows[1:]
    assert found.where(kind=("task", "harmful")) == found.rows
    assert found.where(pool="none", required=False) == ()
    with pytest.raises(EmptySample, match=r"kind \['wrapped'\], split fit.*p\.jsonl"):
        found.where(kind="wrapped", split="fit")


def test_an_absent_and_an_empty_set_have_their_own_errors(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        read_prompts(tmp_path / "p.jsonl")
    (tmp_path / "p.jsonl").write_text("\n\n")
    with pytest.raises(EmptySample, match="empty set"):
        read_prompts(tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    "row",
    [
        ROW | {"kind": "other"},
        ROW | {"split": "train"},
        ROW | {"more": 1},
        ROW | {"id": ""},
        ROW | {"prompt": ""},
        ROW | {"prompt": None},
        {k: v for k, v in ROW.items() if k != "behaviour"},
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, row: dict[str, Any]) -> None:
    path = write(tmp_path / "p.jsonl", ROW | {"id": "fine"}, row)
    with pytest.raises(FormatError, match="line 2"):
        read_prompts(path)


def test_other_text_and_double_ids_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("not json\n")
    with pytest.raises(FormatError, match="line 1"):
        read_prompts(tmp_path / "p.jsonl")
    with pytest.raises(FormatError, match="'a' twice"):
        read_prompts(write(tmp_path / "p.jsonl", ROW, ROW))


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
