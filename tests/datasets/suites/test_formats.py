"""Public sets' formats, on small files of the documented shape; every text is ours and says nothing."""

import json
from typing import Any

import pytest

from safegene.datasets.prompts import Prompt
from safegene.datasets.suites import SUITE_FORMATS, LoadOptions, collect_rows, format_named
from safegene.errors import EmptySample, FormatError, ParamsError


def csv(header: str, *rows: str) -> bytes:
    return "\n".join([header, *rows, ""]).encode()


def lines(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def loaded(form: str, data: bytes, **options: Any) -> tuple[tuple[Prompt, ...], dict[str, int]]:
    chosen = LoadOptions(**options)
    found = collect_rows(SUITE_FORMATS[form].load(data, "file", chosen), chosen, "file")
    return found.rows, dict(found.left_out)


MULTIJAIL = "id,source,en,zh,it,vi,ar,ko,th,bn,sw,jv,tags"
HARMBENCH = "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID"
SHAPES: dict[str, bytes] = {
    "advbench": csv("goal,target", "do thing a,Sure", "do thing b,Sure"),
    "harmbench": csv(
        HARMBENCH,
        "do thing a,standard,chemical,,,a",
        'do thing b,contextual,illegal,context,"some, context",b',
        "quote the book,copyright,copyright,hash_check,,c",
        "do thing d,contextual,illegal,context,,d",
    ),
    "jailbreakbench": csv("Index,Goal,Target,Behavior,Category,Source", "0,do thing a,Sure,A,Kind,Ours"),
    "jailbreakbench-benign": csv("Index,Goal,Target,Behavior,Category,Source", "0,do thing a,Sure,A,Kind,Ours"),
    "xstest": csv("id,prompt,type,label,focus,note", "1,end a thing,homonyms,safe,end,", "2,end a one,c,unsafe,end,"),
    "strongreject": csv("category,source,forbidden_prompt", "kind,ours,do thing a"),
    "catqa": json.dumps({"Kind": {"Part": ["do thing a", "do thing b"]}}).encode(),
    "harmfulqa": json.dumps({"Kind": {"Part": ["do thing a"]}}).encode(),
    "dangerousqa": json.dumps(["do thing a", "do thing b"]).encode(),
    "adversarialqa": json.dumps(["do thing a", "do thing b"]).encode(),
    "multijail": csv(MULTIJAIL, "1,ours,do a,zh a,it a,vi a,ar a,ko a,th a,bn a,sw a,jv a,\"['kind', 'other']\""),
    "simplesafetytests": csv("id,harm_area,category,prompt", "SST_1,area,advice,do thing a"),
    "beavertails": lines(
        {"prompt": "do thing a", "response": "x", "category": {"kind": True, "other": False}, "is_safe": False},
        {"prompt": "do thing a", "response": "y", "category": {"kind": True, "other": False}, "is_safe": False},
        {"prompt": "do thing b", "response": "x", "category": {"kind": False, "other": False}, "is_safe": True},
    ),
    "gsm8k": lines({"question": "one and one ?", "answer": "so <<1+1=2>>2\n#### 2"}),
    "banking77": csv("text,category", "where is it,card_arrival"),
    "agnews": lines({"text": "a ball", "label": 1}),
    "sst2": csv("sentence\tlabel", "a fine thing\t1", "a thing\t-1"),
    "boolq": lines({"question": "is it", "passage": "it is", "title": "it", "answer": True}),
}
ROWS = {  # format -> (kind, category, response) of each row
    "advbench": [("harmful", "advbench", "")] * 2,
    "harmbench": [("harmful", "chemical", ""), ("harmful", "illegal", "")],
    "jailbreakbench": [("harmful", "Kind", "")],
    "jailbreakbench-benign": [("lookalike", "Kind", "")],
    "xstest": [("lookalike", "homonyms", ""), ("harmful", "c", "")],
    "strongreject": [("harmful", "kind", "")],
    "catqa": [("harmful", "Kind", "")] * 2,
    "harmfulqa": [("harmful", "Kind", "")],
    "dangerousqa": [("harmful", "dangerousqa", "")] * 2,
    "adversarialqa": [("harmful", "adversarialqa", "")] * 2,
    "multijail": [("harmful", "kind", "")],
    "simplesafetytests": [("harmful", "area", "")],
    "beavertails": [("harmful", "kind", "")],
    "gsm8k": [("task", "arithmetic", "2")],
    "banking77": [("task", "banking", "card arrival")],
    "agnews": [("task", "news", "sports")],
    "sst2": [("task", "sentiment", "positive")],
    "boolq": [("task", "reading", "yes")],
}


def test_every_format_has_a_shape_here() -> None:
    assert set(SHAPES) == set(ROWS) == set(SUITE_FORMATS)


@pytest.mark.parametrize("form", SHAPES)
def test_a_file_of_the_documented_shape_loads(form: str) -> None:
    rows, _ = loaded(form, SHAPES[form])
    assert [(row.kind, row.category, row.response.casefold()) for row in rows] == [
        (kind, category, response) for kind, category, response in ROWS[form]
    ]
    assert len({row.id for row in rows}) == len(rows)
    assert all(row.split == "test" and row.prompt for row in rows)


@pytest.mark.parametrize("form", SHAPES)
def test_a_byte_order_mark_and_windows_line_ends_change_nothing(form: str) -> None:
    strange = b"\xef\xbb\xbf" + SHAPES[form].replace(b"\n", b"\r\n")
    assert loaded(form, strange)[0] == loaded(form, SHAPES[form])[0]


@pytest.mark.parametrize("form", SHAPES)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: b"PK\x03\x04\x00",
        lambda data: data + b"\0",
        lambda data: data.replace(b"thing", b"\xff\xfe"),
        lambda data: data[: len(data) // 2] if data[:1] in b"[{" else data[:3],
        lambda data: b"<html>not found</html>",
    ],
    ids=["empty", "zip", "nul", "bytes", "cut", "a web page"],
)
def test_what_is_not_of_the_format_is_refused(form: str, spoil: Any) -> None:
    data = spoil(SHAPES[form])
    if data == SHAPES[form]:
        pytest.skip("this shape has nothing to spoil so")
    with pytest.raises((FormatError, EmptySample)):
        loaded(form, data)


TABLES = [form for form, data in SHAPES.items() if data[:1] not in b"[{"]


@pytest.mark.parametrize("form", TABLES)
def test_another_set_of_columns_is_refused_by_name(form: str) -> None:
    header, rest = SHAPES[form].split(b"\n", 1)
    for data in (header + b"x\n" + rest, header.replace(header[:2], b"Zz", 1) + b"\n" + rest):
        with pytest.raises(FormatError, match="expected the columns"):
            loaded(form, data)
    with pytest.raises(FormatError, match=r"columns, got|line 2"):
        loaded(form, header + b"\n" + rest.split(b"\n")[0] + (b"\t" if b"\t" in header else b",") + b"more\n")


def test_what_is_left_out_is_counted_with_its_reason() -> None:
    _, left = loaded("harmbench", SHAPES["harmbench"])
    assert left == {
        "copyright: judged by comparing with the text itself, not by a judge of harm": 1,
        "its context is missing": 1,
    }
    assert loaded("sst2", SHAPES["sst2"])[1] == {"no label: -1": 1}
    assert sum(loaded("beavertails", SHAPES["beavertails"])[1].values()) == 2
    twice = csv("goal,target", "do thing a,Sure", "Do  THING a,Sure", "," + "Sure", "x" * 50 + ",Sure")
    assert loaded("advbench", twice, longest=40)[1] == {
        "more than 40 characters": 1, "no text": 1, "the same text as an earlier row": 1,
    }  # fmt: skip


def test_a_context_stands_before_its_behaviour() -> None:
    rows, _ = loaded("harmbench", SHAPES["harmbench"])
    assert rows[1].prompt == "some, context\n\ndo thing b"


def test_multijail_asks_in_english_directly_and_otherwise_wrapped() -> None:
    rows, _ = loaded("multijail", SHAPES["multijail"], languages=("en", "zh", "jv"))
    assert [(row.id, row.kind, row.behaviour) for row in rows] == [
        ("multijail-1", "harmful", "multijail-1"),
        ("multijail-1--zh", "wrapped", "multijail-1"),
        ("multijail-1--jv", "wrapped", "multijail-1"),
    ]
    with pytest.raises(ParamsError, match="expected languages of"):
        loaded("multijail", SHAPES["multijail"], languages=("en", "xx"))


def test_a_category_can_be_left_out() -> None:
    rows, left = loaded("xstest", SHAPES["xstest"], without=("homonyms",))
    assert [row.kind for row in rows] == ["harmful"]
    assert left == {"category homonyms": 1}


@pytest.mark.parametrize(
    ("form", "data"),
    [
        ("xstest", csv("id,prompt,type,label,focus,note", "1,end a thing,homonyms,Safe?,end,")),
        ("agnews", lines({"text": "a ball", "label": 9})),
        ("sst2", csv("sentence\tlabel", "a fine thing\t2")),
        ("boolq", lines({"question": "is it", "passage": "it is", "answer": "maybe"})),
        ("beavertails", lines({"prompt": "a", "response": "x", "category": {"kind": True}, "is_safe": "no"})),
        ("gsm8k", lines({"question": 7, "answer": "#### 7"})),
        ("dangerousqa", b'["a \\ud800"]'),
    ],
)
def test_a_value_that_nobody_documented_is_refused(form: str, data: bytes) -> None:
    with pytest.raises(FormatError):
        loaded(form, data)


def test_an_id_that_stands_twice_is_refused() -> None:
    data = csv("id,harm_area,category,prompt", "SST_1,area,advice,do a", "SST_1,area,advice,do b")
    with pytest.raises(FormatError, match="every id once"):
        loaded("simplesafetytests", data)


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ParamsError, match=r"expected a format of advbench.*got 'mine'"):
        format_named("mine")
