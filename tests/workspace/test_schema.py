import pytest

from safegene.errors import FormatError
from safegene.workspace.schema import Strict, parse_json, parse_jsonl


class Note(Strict):
    name: str
    count: int = 0


def test_a_value_is_parsed_strictly() -> None:
    assert parse_json(Note, b'{"name": "a", "count": 2}', where="here") == Note(name="a", count=2)
    with pytest.raises(FormatError, match=r"expected a Note, got count: .*valid integer.* \(got '2'\), in here"):
        parse_json(Note, b'{"name": "a", "count": "2"}', where="here")
    with pytest.raises(FormatError, match="other: Extra inputs"):
        parse_json(Note, b'{"name": "a", "other": 1}', where="here")
    with pytest.raises(FormatError, match="each key once"):
        parse_json(Note, b'{"name": "a", "name": "b"}', where="here")


class Pair(Strict):
    values: tuple[int, ...]


def test_a_list_becomes_the_tuple_that_a_field_asks_for() -> None:
    assert parse_json(Pair, b'{"values": [1, 2]}', where="here") == Pair(values=(1, 2))
    with pytest.raises(FormatError, match=r"values\.1: .*valid integer"):
        parse_json(Pair, b'{"values": [1, "2"]}', where="here")


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(FormatError, match="a lone surrogate"):
        parse_json(Note, b'{"name": "\\ud800"}', where="here")


def test_lines_are_counted_as_a_person_counts_them() -> None:
    data = b'{"name": "a"}\n\n{"name": "b"}\n'
    assert [note.name for note in parse_jsonl(Note, data, where="f")] == ["a", "b"]
    with pytest.raises(FormatError, match="in f, line 3"):
        list(parse_jsonl(Note, b'{"name": "a"}\n\n{}\n', where="f"))


def test_only_the_first_problems_are_named() -> None:
    with pytest.raises(FormatError, match="and 2 more"):
        parse_json(Note, b'{"a": 1, "b": 1, "c": 1, "d": 1}', where="f")
