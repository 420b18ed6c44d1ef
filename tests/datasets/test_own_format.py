"""`data add`: a set in the user's own columns becomes a suite, and every gap is filled in or named."""

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from safegene.datasets.own_format import ColumnMap, OwnSet, add_own, parse_columns
from safegene.errors import ArtifactError, EmptySample, FormatError, ParamsError, SafegeneError
from safegene.workspace.layout import Workspace
from tests.factories.library import workspace
from tests.factories.own_data import write_prompts, write_task

MAP = parse_columns(["prompt=text", "kind=label", "category=topic"], ["unsafe=harmful", "safe=lookalike"], "")


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return workspace(tmp_path)


def written(ws: Workspace, name: str, text: str) -> str:
    path = ws.root / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_csv_of_own_columns_becomes_a_suite(ws: Workspace) -> None:
    suite = add_own(ws, OwnSet(str(write_prompts(ws.root / "My Prompts.csv")), MAP))
    assert suite.folder == ws.suites / "my-prompts"
    assert suite.card.rows == {"harmful": 100, "lookalike": 100}
    assert suite.card.source == "own file My Prompts.csv"
    first = suite.prompts.rows[0]
    assert first.prompt == "How could somebody move the blue crate without leave?"
    assert (first.kind, first.category, first.split, first.pool) == ("harmful", "move", "test", "")
    assert first.id.startswith("my-prompts-")
    assert first.behaviour == first.id
    ids = {row.id for row in suite.prompts.rows}
    again = write_prompts(ws.root / "more.csv", harmful=99)
    fewer = add_own(ws, OwnSet(str(again), MAP, name="my-prompts", replace=True))
    assert {row.id for row in fewer.prompts.rows} < ids, "an id depends on its own row only"


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_json_lines_and_tsv_are_read_alike(ws: Workspace, packed: bool) -> None:
    rows = [{"q": "may one move it ?", "harm": True, "n": 1}, {"q": "may one keep it ?", "harm": False, "n": 2}]
    lines = "\n".join(map(json.dumps, rows))
    path = written(ws, "a.jsonl", lines)
    if packed:
        path += ".gz"
        Path(path).write_bytes(gzip.compress(lines.encode()))
    columns = parse_columns(["prompt=q", "kind=harm", "id=n"], ["true=harmful", "false=lookalike"], "ours")
    one = add_own(ws, OwnSet(path, columns, name="one")).prompts.rows
    tsv = written(ws, "a.tsv", "q\tharm\tn\nmay one move it ?\ttrue\t1\nmay one keep it ?\tfalse\t2\n")
    two = add_own(ws, OwnSet(tsv, columns, name="two")).prompts.rows
    assert [(row.id, row.kind, row.category) for row in one] == [
        ("one-1", "harmful", "ours"),
        ("one-2", "lookalike", "ours"),
    ]
    assert [(row.prompt, row.kind) for row in one] == [(row.prompt, row.kind) for row in two]


def test_parquet_is_read_where_a_reader_is_installed(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ws.root / "a.parquet"
    path.write_bytes(b"PAR1 and so on")
    request = OwnSet(str(path), parse_columns([], ["harmful"], ""))

    def without_reader(file: object) -> Any:
        raise ImportError("pyarrow")

    monkeypatch.setattr(pd, "read_parquet", without_reader)
    with pytest.raises(FormatError, match="a Parquet reader") as caught:
        add_own(ws, request)
    assert "pip install pyarrow" in caught.value.remedy
    monkeypatch.setattr(pd, "read_parquet", lambda file: pd.DataFrame({"prompt": ["how ?", None], "x": [1, 2]}))
    suite = add_own(ws, request)
    assert [row.prompt for row in suite.prompts.rows] == ["how ?"]
    assert suite.card.left_out == {"no text": 1}


def test_a_task_needs_its_answers_and_no_other_reply_is_kept(ws: Workspace) -> None:
    columns = parse_columns(["prompt=question", "response=answer"], ["task"], "")
    suite = add_own(ws, OwnSet(str(write_task(ws.root / "desk.csv", rows=3)), columns))
    assert [(row.kind, row.response, row.behaviour) for row in suite.prompts.rows] == [
        ("task", "north", ""),
        ("task", "south", ""),
        ("task", "east", ""),
    ]
    replies = written(ws, "r.csv", "prompt,response\nhow ?,never kept\n")
    kept = add_own(ws, OwnSet(replies, parse_columns([], ["harmful"], "")))
    assert kept.prompts.rows[0].response == ""
    none = written(ws, "t.csv", "prompt,response\nhow ?,\n")
    with pytest.raises(EmptySample, match="1 left out: no response"):
        add_own(ws, OwnSet(none, parse_columns([], ["task"], "")))


WRONG: dict[str, tuple[str, ColumnMap, type[SafegeneError], str, str]] = {
    "no prompt column": (
        "text,label\na,b\n",
        ColumnMap(kind="harmful"),
        ParamsError,
        "expected a column for the prompt, got the columns 'text', 'label'",
        "--map prompt=COLUMN",
    ),
    "a column that is not there": (
        "text,label\na,b\n",
        ColumnMap({"prompt": "txt"}, "harmful"),
        ParamsError,
        "expected the column 'txt', got the columns 'text', 'label'",
        "",
    ),
    "no kind": ("prompt\na\n", ColumnMap(), ParamsError, "expected a kind for every row", "--kind KIND"),
    "an unknown kind": (
        "prompt,kind\na,harmful\nb,rude\n",
        ColumnMap(),
        FormatError,
        r"got 'rude', in data\.csv, line 3",
        "--kind rude=KIND",
    ),
    "wrapped without behaviour": (
        "prompt,kind\na,wrapped\n",
        ColumnMap(),
        FormatError,
        "expected the behaviour of a wrapped prompt",
        "--map behaviour=COLUMN",
    ),
    "task rows among others": (
        "prompt,kind,response\na,task,b\nc,harmful,\n",
        ColumnMap(),
        ParamsError,
        "expected a task set by itself",
        "",
    ),
    "no rows": ("prompt,kind\n", ColumnMap(), EmptySample, "at least one row", ""),
    "one id for two texts": (
        "id,prompt,kind\n1,a,harmful\n1,b,harmful\n",
        ColumnMap({"id": "id"}),
        FormatError,
        "expected every id once, got 'data-1' twice",
        "",
    ),
    "one text of two kinds": (
        "prompt,kind\na b,harmful\nA B!,lookalike\n",
        ColumnMap(),
        FormatError,
        r"one kind for a text, got harmful in data\.csv, line 2 and lookalike in data\.csv, line 3",
        "",
    ),
    "a binary file": ("a\0b", ColumnMap(kind="harmful"), FormatError, "NUL", ""),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_is_named_with_a_remedy(ws: Workspace, name: str) -> None:
    text, columns, error, words, remedy = WRONG[name]
    with pytest.raises(error, match=words) as caught:
        add_own(ws, OwnSet(written(ws, "data.csv", text), columns))
    assert remedy in caught.value.remedy
    assert not (ws.suites / "data").exists()


@pytest.mark.parametrize(
    ("maps", "kinds"),
    [
        (["text"], []),
        (["colour=x"], []),
        (["prompt=a", "prompt=b"], []),
        ([], ["rude"]),
        ([], ["x=rude"]),
        ([], ["harmful", "x=task"]),
        (["kind=label"], ["harmful"]),
    ],
    ids=str,
)
def test_a_map_that_says_nothing_is_refused(maps: list[str], kinds: list[str]) -> None:
    with pytest.raises(ParamsError):
        parse_columns(maps, kinds, "")


def test_a_text_twice_is_counted_and_a_suite_is_never_written_over(ws: Workspace) -> None:
    path = written(ws, "twice.csv", "prompt,kind\nhow ?,harmful\nhow ?,harmful\nHOW ?!,harmful\n")
    suite = add_own(ws, OwnSet(path))
    assert suite.card.left_out == {"the same text as an earlier row": 2}
    with pytest.raises(ArtifactError, match="expected no suite of that name yet"):
        add_own(ws, OwnSet(path))
    (ws.suites / "notes").mkdir()
    (ws.suites / "notes" / "mine.txt").write_text("by hand")
    with pytest.raises(ArtifactError, match="expected no suite of that name yet"):
        add_own(ws, OwnSet(path, name="notes", replace=True))
    assert (ws.suites / "notes" / "mine.txt").is_file(), "a folder that is no suite is not replaced"
