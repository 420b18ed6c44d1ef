"""Adding suites: what the card states, and what is refused; a refused request leaves nothing behind."""

import json
from pathlib import Path
from typing import Any

import pytest

from safegene.datasets.adding import SuiteRequest, add_suite
from safegene.datasets.suite_library import suite_names
from safegene.datasets.suites import LoadOptions, read_suite
from safegene.datasets.suites.card import CARD
from safegene.errors import (
    ArtifactError,
    DigestMismatch,
    EmptySample,
    FormatError,
    ParamsError,
    SafegeneError,
    SourceError,
)
from safegene.workspace.digest import digest_bytes
from safegene.workspace.layout import Workspace
from tests.factories.library import GOALS, OURS, advbench, request, strongreject, workspace


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return workspace(tmp_path)


def test_a_suite_is_added_once_and_read_back(ws: Workspace) -> None:
    suite = add_suite(ws, request(ws, sha256=digest_bytes(advbench())))
    assert suite == read_suite(ws.suites / "ours")
    assert suite.card.rows == {"harmful": len(GOALS)}
    assert suite.card.files == {"ours.csv": digest_bytes((ws.root / "ours.csv").read_bytes())}
    assert suite.digest == digest_bytes((suite.folder / CARD).read_bytes().rstrip())
    with pytest.raises(ArtifactError, match="no suite of that name yet"):
        add_suite(ws, request(ws, goals=GOALS[:3]))
    assert read_suite(ws.suites / "ours") == suite


REFUSED: dict[str, tuple[dict[str, Any], type[SafegeneError], str]] = {
    "another file": ({"sha256": "sha256:" + "0" * 64}, DigestMismatch, "expected ours.csv with sha256:000"),
    "no file": ({"source": "/nowhere/at.csv"}, SourceError, "expected a file, got none"),
    "an unknown format": ({"format": "mine"}, ParamsError, "expected a format of"),
    "another format": ({"format": "xstest"}, FormatError, "expected the columns id"),
    "a secret": ({"source": "s3://key:secret@bucket/a.csv"}, SourceError, "without secrets"),
    "no template file": ({"templates": "/nowhere.json"}, SourceError, "expected a file"),
    "one file twice": ({"translations": {"zh": "ours.csv"}}, ParamsError, "expected files of different names"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_request_leaves_nothing_behind(ws: Workspace, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ws.root)
    changes, error, why = REFUSED[name]
    with pytest.raises(error, match=why) as caught:
        add_suite(ws, request(ws, **changes))
    assert "secret@" not in str(caught.value)
    assert not ws.suites.exists() or not any(ws.suites.iterdir())


@pytest.mark.parametrize(
    "origin", ["https://user:canary@host/x", "https://host/x?token=canary", "s3://b/x?X-Amz-Signature=canary"]
)
def test_an_origin_with_a_secret_never_gets_into_a_card(ws: Workspace, origin: str) -> None:
    with pytest.raises(ParamsError, match=r"expected --from without secrets") as refused:
        add_suite(ws, request(ws, origin=origin))
    assert "canary" not in refused.value.message + refused.value.remedy
    assert suite_names(ws) == []


@pytest.mark.parametrize("field", ["licence", "origin", "version"])
@pytest.mark.parametrize("value", ["", "x" * 1001, "1\n2", "unknown"], ids=["nothing", "long", "two lines", "unknown"])
def test_what_a_card_cannot_say_is_refused(ws: Workspace, field: str, value: str) -> None:
    with pytest.raises(ParamsError, match=f"expected the suite's {'source' if field == 'origin' else field}"):
        add_suite(ws, request(ws, **{field: value}))
    assert suite_names(ws) == []


def test_a_category_without_end_is_refused(ws: Workspace) -> None:
    add_suite(ws, strongreject(ws, "fine", ("c" * 200, "do thing a")))
    with pytest.raises(FormatError, match=r"a category of at most 200 characters, got 201, in long\.csv, line 2"):
        add_suite(ws, strongreject(ws, "long", ("c" * 201, "do thing a")))


def test_an_option_that_means_nothing_for_the_set_is_refused(ws: Workspace) -> None:
    with pytest.raises(ParamsError, match=r"expected categories of the set \(advbench\), got 'advbnech'"):
        add_suite(ws, request(ws, options=LoadOptions(without=("advbnech",))))
    with pytest.raises(ParamsError, match=r"expected no languages for advbench, got zh"):
        add_suite(ws, request(ws, options=LoadOptions(languages=("zh",))))
    assert suite_names(ws) == []


def test_leaving_out_every_category_leaves_no_suite(ws: Workspace) -> None:
    with pytest.raises(EmptySample, match=r"got none \(4 left out: category advbench\)"):
        add_suite(ws, request(ws, options=LoadOptions(without=("advbench",))))
    assert suite_names(ws) == []


def test_an_origin_is_for_files_of_this_machine_only(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from safegene.checkpoints.sources.files import PlainFile
    from safegene.datasets import adding

    found = PlainFile("a.csv", advbench(), "s3://bucket/a.csv")
    monkeypatch.setattr(adding, "read_file", lambda *_: found)
    with pytest.raises(ParamsError, match="expected --from for files on this machine only, got it for s3://bucket"):
        add_suite(ws, request(ws))


def test_a_card_names_every_file_that_it_was_made_from_and_all_that_was_asked(ws: Workspace) -> None:
    tree = {"One": {"Part": list(GOALS)}, "Two": {"Part": ["leave me out", "and me"]}}
    other = {"One": {"Part": [f"zh {goal}" for goal in GOALS]}, "Two": {"Part": ["zh out", "zh me"]}}
    (ws.root / "en.json").write_text(json.dumps(tree))
    (ws.root / "zh.json").write_text(json.dumps(other))
    (ws.root / "t.jsonl").write_text('{"id": "s", "text": "story: {prompt}"}\n{"id": "p", "text": "play: {prompt}"}\n')
    asked = SuiteRequest(
        "ours",
        str(ws.root / "en.json"),
        "catqa",
        "Apache-2.0",
        OURS,
        version="of May",
        options=LoadOptions(split="validation", without=("Two",)),
        templates=str(ws.root / "t.jsonl"),
        per_behaviour=2,
        translations={"zh": str(ws.root / "zh.json")},
    )
    card = add_suite(ws, asked).card
    assert set(card.files) == {"en.json", "zh.json", "t.jsonl"}
    assert (card.version, card.licence, card.source) == ("of May", "Apache-2.0", OURS)
    assert card.options == {"split": "validation", "languages": (), "without": ("Two",)}
    assert [(one.kind, one.said, one.made) for one in card.transforms] == [
        ("translate", "zh", 4),
        ("wrap", "2 per behaviour", 8),
    ]
    assert card.rows == {"harmful": 4, "wrapped": 12}
    assert card.left_out == {"category Two": 2, "no direct row of that id": 2}


def test_a_source_whose_name_is_too_long_is_refused(ws: Workspace) -> None:
    with pytest.raises(SourceError, match="expected a file"):
        add_suite(ws, request(ws, source="x" * 5000))
