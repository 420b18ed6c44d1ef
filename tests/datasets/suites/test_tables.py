"""Files of strangers: what is read, what is refused, and that nothing but an error of ours ever comes out."""

import gzip
import json
import lzma
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from safegene.datasets.prompts import Prompt
from safegene.datasets.suites import SUITE_FORMATS, LoadOptions, collect_rows
from safegene.datasets.suites.loading import SkippedRow, clean_text, to_item
from safegene.datasets.suites.tables import csv_records, decode_text, decompress, json_records, json_value, records
from safegene.datasets.suites.wrappers import read_templates
from safegene.errors import EmptySample, FormatError, SafegeneError

TEXT = b"goal,target\ndo thing a,Sure\n" * 40
PACKED = {"a.csv.gz": gzip.compress(TEXT), "a.csv.xz": lzma.compress(TEXT)}


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_file_with_any_byte_damaged_is_refused_or_whole(name: str) -> None:
    whole = PACKED[name]
    refused = 0
    for at in range(len(whole)):
        damaged = whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]
        with suppress(FormatError):
            assert decompress(name, damaged) == TEXT, at
            continue
        refused += 1
    assert refused > len(whole) / 2


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_file_cut_anywhere_is_refused(name: str) -> None:
    assert decompress(name, PACKED[name], limit=len(TEXT)) == TEXT
    for length in range(1, len(PACKED[name])):
        with pytest.raises(FormatError, match=r"a whole \.(gz|xz) file"):
            decompress(name, PACKED[name][:length])


@pytest.mark.parametrize(("name", "pack"), [("bomb.gz", gzip.compress), ("bomb.xz", lzma.compress)])
def test_a_small_file_that_unpacks_into_a_large_one_is_opened_to_the_limit_only(name: str, pack: Any) -> None:
    import tracemalloc

    bomb = pack(bytes(64 << 20))
    assert len(bomb) < 128 << 10
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=r"at most 1048576 bytes, got more, in bomb"):
            decompress(name, bomb, limit=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_packed_file_under_a_plain_name_is_not_guessed_at() -> None:
    assert decompress("a.csv", PACKED["a.csv.gz"]) == PACKED["a.csv.gz"]
    with pytest.raises(FormatError):
        decode_text(PACKED["a.csv.gz"], "a.csv")
    with pytest.raises(FormatError, match=r"expected CSV or JSON lines, got Parquet.* in a\.csv") as refused:
        decompress("a.csv", b"PAR1" + bytes(8))
    assert "read_parquet" in refused.value.remedy


# Rows.


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"a,b\n1,2\n3\n", r"expected 2 columns, got 1, in f, line 3"),
        (b"a,b\n1,2,3\n", r"expected 2 columns, got 3, in f, line 2"),
        (b'a,b\n1,"cut\n', r"expected CSV, got unexpected end of data, in f, line 2"),
        (b'a,b\n1,"x"y\n', r"expected CSV, got .*, in f, line 2"),
        (b"a,b\n1," + b"x" * 200_000 + b"\n", r"field larger than field limit"),
        (b"a,b,c\n1,2,3\n", r"expected the columns a, b, each once, got 'a', 'b', 'c', in f"),
        (b"a\n1\n", r"expected the columns a, b, each once, got 'a', in f"),
        (b"a,b,b\n1,2,3\n", r"each once"),
        (b"A,B\n1,2\n", r"expected the columns a, b"),
        (b" a,b\n1,2\n", r"got ' a', 'b'"),
        (b"a;b\n1;2\n", r"got 'a;b'"),
        (b"\n\na,b\n1,2\n", r"got none, in f"),
        (b"a,b\n1,\0\n", r"expected text, got a NUL byte at 6, in f"),
        (b"a,b\n1,\xe9\n", r"expected UTF-8, got .* at byte 6, in f"),
        (b"a,b\n1,\xed\xa0\x80\n", r"expected UTF-8"),
        (b"\xff\xfea\0,\0b\0", r"NUL byte"),
    ],
)
def test_a_broken_table_is_refused_with_its_line(data: bytes, why: str) -> None:
    with pytest.raises(FormatError, match=why):
        list(csv_records(data, ("a", "b"), "f"))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"a": 1}\n[1]\n', r"expected a JSON object, got list, in f, line 2"),
        (b'{"a": 1}\n{"a": 1, "b": 2}\n', r"expected the columns a, each once, got 'a', 'b', in f, line 2"),
        (b'{"a": 1}\n{}\n', r"got none, in f, line 2"),
        (b'{"a": 1, "a": 2}\n', r"\['a'\] twice, in f, line 1"),
        (b'{"a": NaN}\n', r"finite numbers, got NaN, in f, line 1"),
        (b'{"a": 1}\n{"a": ', r"expected JSON, got .*, in f, line 2"),
        (b'{"a": ' + b"[" * 100_000, r"expected JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", r"expected JSON"),
    ],
)
def test_a_broken_json_line_is_refused_with_its_line(data: bytes, why: str) -> None:
    with pytest.raises(FormatError, match=why):
        list(json_records(data, ("a",), "f"))


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b"\n\r\n", b" "])
def test_an_empty_file_is_no_set(data: bytes) -> None:
    with pytest.raises((EmptySample, FormatError)):
        list(records(data, ("a",), "f"))
    with pytest.raises(EmptySample, match="expected at least one row, got none, in f"):
        list(json_records(data, ("a",), "f"))
    with pytest.raises(EmptySample):
        list(csv_records(b"a\n" + data.strip(b"\xef\xbb\xbf ").strip(), ("a",), "f"))
    with pytest.raises(FormatError):
        json_value(data, "f")


def test_a_table_or_lines_are_told_apart_by_the_first_character() -> None:
    wanted = [("f, line 2", {"a": "1", "b": "x, y"})]
    assert list(records(b'a,b\n1,"x, y"\n', ("a", "b"), "f")) == wanted
    assert list(records(b"\xef\xbb\xbfa\tb\r\n1\tx, y\r\n", ("a", "b"), "f")) == wanted
    assert list(records(b'\n {"a": "1", "b": "x, y"}\r\n\n', ("a", "b"), "f")) == wanted


def test_a_cell_may_hold_lines_and_quotes() -> None:
    found = list(csv_records(b'a,b\n"one\r\ntwo ""three""",x\n', ("a", "b"), "f"))
    assert found == [("f, line 3", {"a": 'one\r\ntwo "three"', "b": "x"})]


@given(
    st.sampled_from(sorted(SUITE_FORMATS)),
    st.one_of(st.binary(max_size=300), st.text(max_size=300).map(str.encode)),
)
@example("agnews", b'{"text": {"a": []}, "label": []}')
@example("beavertails", b'{"prompt": "a", "response": "b", "category": [1], "is_safe": false}')
@example("catqa", b'{"a": {"b": [1]}}')
@example("dangerousqa", b'["\\ud800"]')
@example("boolq", b'{"question": null, "passage": "b", "answer": true}')
def test_law_whatever_a_file_holds_only_our_errors_come_out(form: str, data: bytes) -> None:
    with suppress(SafegeneError):
        collect_rows(SUITE_FORMATS[form].load(data, "f", LoadOptions()), LoadOptions(), "f")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["id", "text", "turns"]), inner),
    max_leaves=8,
)


@given(st.one_of(st.binary(max_size=200), JSON.map(lambda value: json.dumps(value).encode())))
def test_law_whatever_a_file_of_templates_holds_only_our_errors_come_out(data: bytes) -> None:
    with suppress(SafegeneError):
        read_templates(data, "f")


# From rows to prompts.


@pytest.mark.parametrize("value", [None, 7, True, ["a"], {"a": "b"}, "a\0b", "\ud800", "a\udfff"])
def test_what_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(FormatError, match=r"in f, line 2"):
        clean_text(value, "f, line 2")
    for field in ({"text": value}, {"category": value}, {"response": value}):
        said: dict[str, Any] = {"text": "a", "category": "c"} | field
        with pytest.raises(FormatError):
            to_item("n", said.pop("text"), "harmful", said.pop("category"), LoadOptions(), "f", **said)


def prompt(name: str, text: str, category: str = "c") -> Prompt:
    return Prompt(id=name, prompt=text, kind="harmful", category=category, behaviour=name, split="test")


ITEMS = st.lists(
    st.builds(SkippedRow, st.sampled_from(["no text", "no label"]))
    | st.tuples(st.sampled_from(["a b", "A  b!", "c", "d" * 30, "!", "?"]), st.sampled_from(["c", "x"])),
    max_size=12,
)


@given(ITEMS)
def test_law_every_row_of_a_file_is_kept_or_counted_with_a_reason(drawn: list[Any]) -> None:
    items = [
        item if isinstance(item, SkippedRow) else prompt(f"p{at}", item[0], item[1]) for at, item in enumerate(drawn)
    ]
    options = LoadOptions(without=("x",), longest=20)
    try:
        found = collect_rows(items, options, "f")
    except EmptySample:
        assert all(isinstance(item, SkippedRow) or item.category == "x" or len(item.prompt) > 20 for item in items)
        return
    assert len(found.rows) + sum(found.left_out.values()) == len(items)
    assert list(found.left_out) == sorted(found.left_out)
    texts = [one.prompt for one in found.rows]
    assert len(set(texts)) == len(texts)
    assert [one for one in items if one in found.rows] == list(found.rows), "in file order"


def test_prompts_of_signs_only_are_told_apart_by_their_text() -> None:
    found = collect_rows([prompt("a", "!"), prompt("b", "?"), prompt("c", "!")], LoadOptions(), "f")
    assert [one.id for one in found.rows] == ["a", "b"]
