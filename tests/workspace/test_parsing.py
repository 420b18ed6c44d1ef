import json
from typing import ClassVar

import pytest

from safegene.errors import FormatError
from safegene.gate.types import JudgementRow
from safegene.workspace.manifest import Manifest
from safegene.workspace.parsing import Strict, parse_json, parse_jsonl


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


def test_a_file_format_needs_every_key_that_is_not_optional() -> None:
    class Format(Strict):
        OPTIONAL_KEYS: ClassVar[frozenset[str]] = frozenset({"later"})

        name: str = "default"
        later: int = 0

    assert parse_json(Format, b'{"name": "a"}', where="f") == Format(name="a")
    with pytest.raises(FormatError, match="expected a Format with the keys name, got none of them, in f"):
        parse_json(Format, b'{"later": 1}', where="f")


@pytest.mark.parametrize("key", ["schema", "version", "facts"])
def test_a_manifest_without_one_of_its_keys_is_refused(key: str) -> None:
    content = json.loads(Manifest(stage="s", params={}, inputs={}, files={}).content)
    del content[key]
    with pytest.raises(FormatError, match=f"with the keys {key}"):
        parse_json(Manifest, json.dumps(content), where="f")


@pytest.mark.parametrize("key", ["weights", "failure", "correct"])
def test_a_judgement_without_what_its_verdict_rests_on_is_refused(key: str) -> None:
    row = JudgementRow("p", "candidate", "sha256:" + "0" * 64, "no", "yes", None, "yes").to_json()
    del row[key]
    with pytest.raises(FormatError, match=f"with the keys {key}"):
        parse_json(JudgementRow, json.dumps(row), where="f")
