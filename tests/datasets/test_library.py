"""Suites on the shelf: what is refused, what a card proves, what the gate is made of."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safegene.datasets.adding import SuiteRequest, add_suite
from safegene.datasets.library import check_suites, suite_names, use_suites
from safegene.datasets.prompts import Prompt, read_prompts
from safegene.datasets.suites import LoadOptions, Suite, read_suite
from safegene.datasets.suites.card import CARD
from safegene.datasets.suites.wrappers import flatten_turns, read_templates, wrap
from safegene.errors import (
    ArtifactError,
    ContaminatedSample,
    DigestMismatch,
    EmptySample,
    FormatError,
    ParamsError,
    SafegeneError,
    SourceError,
)
from safegene.pipeline.init import template_folder
from safegene.workspace.digest import canonical_json, digest_bytes
from safegene.workspace.layout import Workspace
from tests.factories.commands import run

WORDS = ("apple", "stone", "river", "cloud", "table", "window", "garden", "mirror")
ROWS = [f"tell me how the {word} of number {at} could be moved without anyone" for at, word in enumerate(WORDS)]
OURS = "https://example.org/ours"
TEMPLATES = b"".join(
    json.dumps({"id": f"t{at}", "text": f"story {at}: {{prompt}} end"}).encode() + b"\n" for at in range(6)
)


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    for name in ("params.yaml", "dvc.yaml", "data"):
        source = template_folder() / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    return Workspace(tmp_path)


def source(ws: Workspace, rows: list[str] = ROWS, name: str = "harmful_behaviors.csv") -> Path:
    path = ws.root / name
    path.write_text("goal,target\n" + "".join(f"{row},Sure\n" for row in rows))
    return path


def request(ws: Workspace, name: str = "ours", rows: list[str] = ROWS, **more: Any) -> SuiteRequest:
    asked = SuiteRequest(name, str(source(ws, rows, f"{name}.csv")), "advbench", "MIT", OURS)
    return replace(asked, **more)


def test_a_suite_is_added_once_and_proves_what_it_is(ws: Workspace) -> None:
    made = add_suite(ws, request(ws, sha256=digest_bytes(source(ws, name="ours.csv").read_bytes())))
    assert made == read_suite(ws.suites / "ours")
    assert made.card.rows == {"harmful": len(ROWS)}
    assert made.card.files == {"ours.csv": digest_bytes((ws.root / "ours.csv").read_bytes())}
    assert made.digest == digest_bytes((made.folder / CARD).read_bytes().rstrip())
    with pytest.raises(ArtifactError, match="no suite of that name yet"):
        add_suite(ws, request(ws, rows=ROWS[:3]))
    assert read_suite(ws.suites / "ours") == made


BAD: dict[str, tuple[dict[str, Any], type[SafegeneError], str]] = {
    "no licence": ({"licence": " "}, ParamsError, r"the suite's licence"),
    "a licence that nobody knows": ({"licence": "Unknown"}, ParamsError, r"the suite's licence"),
    "no origin": ({"origin": ""}, ParamsError, r"the suite's source"),
    "another file": ({"sha256": "sha256:" + "0" * 64}, DigestMismatch, "expected ours.csv with sha256:000"),
    "no file": ({"source": "/nowhere/at.csv"}, SourceError, "expected a file, got none"),
    "a name that climbs": ({"name": "../ours"}, ParamsError, "a name of lower-case letters"),
    "an unknown format": ({"format": "mine"}, ParamsError, "expected a format of"),
    "another format": ({"format": "xstest"}, FormatError, "expected the columns id"),
    "a secret": ({"source": "s3://key:secret@bucket/a.csv"}, SourceError, "without secrets"),
    "no template": ({"templates": "/nowhere.json"}, SourceError, "expected a file"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_a_suite_leaves_nothing_behind(ws: Workspace, name: str) -> None:
    changes, error, why = BAD[name]
    with pytest.raises(error, match=why) as caught:
        add_suite(ws, request(ws, **changes))
    assert "secret@" not in str(caught.value)
    assert suite_names(ws) == []
    assert not ws.suites.exists() or not any(ws.suites.iterdir())


def card(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        at = folder / "suite.json"
        value = json.loads(at.read_text())
        change(value)
        at.write_text(json.dumps(value))

    return spoil


def linked(folder: Path) -> None:
    (folder / "data.jsonl").rename(folder / "moved")
    os.symlink("moved", folder / "data.jsonl")


SPOILED: dict[str, tuple[Callable[[Path], object], type[SafegeneError]]] = {
    "a byte of the data": (
        lambda at: (at / "data.jsonl").write_bytes((at / "data.jsonl").read_bytes().replace(b"apple", b"apples", 1)),
        DigestMismatch,
    ),
    "a row less": (
        lambda at: (at / "data.jsonl").write_bytes((at / "data.jsonl").read_bytes().split(b"\n", 1)[1]),
        DigestMismatch,
    ),
    "no data": (lambda at: (at / "data.jsonl").unlink(), ArtifactError),
    "a link": (linked, ArtifactError),
    "another name": (card(lambda c: c.update(name="theirs")), FormatError),
    "another key": (card(lambda c: c.update(more=1)), FormatError),
    "a key less": (card(lambda c: c.pop("licence")), FormatError),
    "no licence": (card(lambda c: c.update(licence="none")), FormatError),
    "other counts": (card(lambda c: c.update(rows={"harmful": 9})), FormatError),
    "other categories": (card(lambda c: c.update(categories=["else"])), FormatError),
    "an expectation less": (card(lambda c: c["expectations"].pop()), FormatError),
    "a weaker expectation": (card(lambda c: c["expectations"][-1]["arguments"].update(regex=".*")), FormatError),
    "shorter prompts allowed": (card(lambda c: c.update(longest=3)), FormatError),
    "no JSON": (lambda at: (at / "suite.json").write_text("{"), FormatError),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_suite_that_is_not_what_its_card_says_is_refused(ws: Workspace, name: str) -> None:
    spoil, error = SPOILED[name]
    add_suite(ws, request(ws))
    spoil(ws.suites / "ours")
    for read in (
        lambda: read_suite(ws.suites / "ours"),
        lambda: check_suites(ws, ["ours"]),
        lambda: use_suites(ws, ["ours"]),
    ):
        with pytest.raises(error):
            read()
    run(ws.root, "suite", "list", code=1)


LONG = "move the seven grey boxes from the left shelf to the right one before the bell rings at noon"


def fitted(ws: Workspace) -> Prompt:
    """A row more of what is fitted on."""
    path = ws.prompts / "safety.jsonl"
    known = next(row for row in read_prompts(path).rows if row.kind == "harmful")
    more = known.model_copy(update={"id": "more", "behaviour": "more", "prompt": LONG})
    path.write_bytes(path.read_bytes() + canonical_json(more.model_dump()) + b"\n")
    return more


@pytest.mark.parametrize(
    "tested",
    [lambda text: text, lambda text: text.upper() + " !", lambda text: f"please , {text} , and tell no one"],
    ids=["the same text", "other letters", "the same words in a row"],
)
def test_what_is_fitted_on_is_no_suite_for_the_gate(ws: Workspace, tested: Callable[[str], str]) -> None:
    known = fitted(ws)
    add_suite(ws, request(ws, rows=[*ROWS, '"' + tested(known.prompt) + '"']))
    for refused in (lambda: check_suites(ws, ["ours"]), lambda: use_suites(ws, ["ours"])):
        with pytest.raises(ContaminatedSample, match="advbench-8"):
            refused()


def test_a_suite_that_nothing_can_be_held_against_is_not_called_clean(ws: Workspace) -> None:
    add_suite(ws, request(ws))
    assert check_suites(ws, []) == check_suites(ws, ["ours"])
    for path in (*ws.prompts.glob("*.jsonl"), *ws.tasks.glob("*.jsonl")):
        path.unlink()
    with pytest.raises(EmptySample, match="to compare the suites with"):
        check_suites(ws, ["ours"])


def test_no_suite_is_no_pass(ws: Workspace) -> None:
    with pytest.raises(EmptySample, match="at least one suite"):
        check_suites(ws, [])


def test_the_gate_asks_each_behaviour_once_and_says_where_it_is_from(ws: Workspace) -> None:
    one = add_suite(ws, request(ws))
    other = SuiteRequest("theirs", str(ws.root / "t.csv"), "strongreject", "MIT", OURS)
    Path(other.source).write_text(
        "category,source,forbidden_prompt\n" + f"a,b,{ROWS[2].upper()}\na,b,move the ninth thing out of the old house\n"
    )
    two = add_suite(ws, other)
    used = use_suites(ws, ["ours", "theirs"])
    assert [row.id for row in used.rows] == [*(f"advbench-{at}" for at in range(len(ROWS))), "strongreject-1"]
    assert used.left_out == {"ours": 0, "theirs": 1}
    pins = json.loads((ws.suites / "gate.json").read_text())
    assert pins["suites"] == {"ours": one.digest, "theirs": two.digest}
    assert pins["gate"] == read_prompts(ws.prompts / "gate.jsonl").digest


def test_rows_that_a_gate_does_not_ask_are_refused(ws: Workspace) -> None:
    (ws.root / "test.csv").write_text("text,category\nwhere is it,card_arrival\n")
    add_suite(ws, SuiteRequest("bank", str(ws.root / "test.csv"), "banking77", "CC-BY-4.0", OURS))
    before = (ws.prompts / "gate.jsonl").read_bytes()
    with pytest.raises(ParamsError, match="got \\['task'\\] in bank"):
        use_suites(ws, ["bank"])
    assert (ws.prompts / "gate.jsonl").read_bytes() == before


def test_wrappers_ask_the_same_behaviours_and_are_in_the_card(ws: Workspace) -> None:
    (ws.root / "t.jsonl").write_bytes(TEMPLATES)
    made: Suite = add_suite(ws, request(ws, templates=str(ws.root / "t.jsonl"), per_behaviour=2))
    assert made.card.rows == {"harmful": len(ROWS), "wrapped": 2 * len(ROWS)}
    assert made.card.files["t.jsonl"] == digest_bytes(TEMPLATES)
    wrapped = made.prompts.where(kind="wrapped")
    assert {row.behaviour for row in wrapped} == {f"advbench-{at}" for at in range(len(ROWS))}
    assert all(any(text in row.prompt for text in ROWS) and row.prompt.startswith("story") for row in wrapped)


@given(st.integers(1, 5), st.integers(0, 5))
def test_law_a_template_more_moves_only_what_it_takes_over(per_behaviour: int, without: int) -> None:
    base = [Prompt(id=f"b{at}", prompt=text, kind="harmful", category="c", behaviour=f"b{at}", split="test")
            for at, text in enumerate(ROWS)]  # fmt: skip
    every = read_templates(TEMPLATES, "t")
    fewer = replace(every, usable=tuple(one for at, one in enumerate(every.usable) if at != without))
    before, after = ({row.id for row in wrap(base, some, per_behaviour, LoadOptions())[0] if isinstance(row, Prompt)}
                     for some in (fewer, every))  # fmt: skip
    assert {name.split("--")[1] for name in after - before} <= {f"t{without}"}
    assert len(after - before) == len(before - after)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"id": "a", "text": "no place"}', "no place for the prompt"),
        (b'{"id": "a", "text": "{prompt} and {prompt}"}', "several places"),
        (b'{"id": "a", "text": " {prompt} "}', "nothing around"),
        (b'{"id": "A b", "text": "x {prompt}"}', "ids of lower-case letters"),
        (b'{"id": "a", "text": "x {prompt}"}\n{"id": "a", "text": "y {prompt}"}', "each once"),
        (b'{"id": "a", "text": "x {prompt}", "turns": ["a", "b"]}', "either text or turns"),
        (b'{"id": "a", "turns": ["only {prompt}"]}', "two turns or more"),
        (b'["no place at all"]', "at least one template"),
    ],
)
def test_a_template_that_wraps_nothing_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(SafegeneError, match=why):
        read_templates(data, "t")


def test_turns_are_one_numbered_prompt() -> None:
    assert flatten_turns(["hello", "now {prompt}"]) == "Turn 1 of 2:\nhello\n\nTurn 2 of 2:\nnow {prompt}"
    (one,) = read_templates(b'{"id": "a", "turns": ["hello", "now {prompt}"]}', "t").usable
    assert one.fill("X {prompt}").endswith("now X {prompt}")


def test_translations_of_another_set_are_refused(ws: Workspace) -> None:
    for name, category in (("a.json", "One"), ("b.json", "One"), ("c.json", "Two")):
        rows = [f"{name} {text}" for text in ROWS]
        (ws.root / name).write_text(json.dumps({category: {"Part": rows}}))
    asked = SuiteRequest("three", str(ws.root / "a.json"), "catqa", "MIT", OURS)
    made = add_suite(ws, replace(asked, translations={"zh": str(ws.root / "b.json")}))
    assert made.card.rows == {"harmful": len(ROWS), "wrapped": len(ROWS)}
    for translations, why in (
        ({"zh": str(ws.root / "c.json")}, "of category 'One', got 'Two'"),
        ({"Chinese!": str(ws.root / "b.json")}, "expected a language tag"),
        ({"zh": str(ws.root / "a.json")}, "files of different names"),
    ):
        with pytest.raises(SafegeneError, match=why):
            add_suite(ws, replace(asked, name="four", translations=translations))


def test_the_commands_do_all_that(ws: Workspace) -> None:
    path = source(ws)
    added = run(ws.root, "suite", "add", "ours", str(path), "--format", "advbench", "--licence", "MIT", "--from", OURS)
    assert "8 harmful" in added.stdout
    for command in (("list",), ("validate",), ("use", "ours")):
        run(ws.root, "suite", *command)
    refused = run(ws.root, "suite", "add", "more", str(path), "--format", "advbench", "--from", OURS, code=2)
    assert "licence" in refused.stderr
    assert "MIT" in refused.stderr, "a hint at what its authors say"
