"""A suite's card: what it proves, byte by byte and key by key, and what is refused in it."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safegene.datasets.adding import add_suite
from safegene.datasets.suite_library import check_suites
from safegene.datasets.suites import Suite, read_suite, write_suite
from safegene.datasets.suites.card import CARD, DATA, MAX_CARD, check_known
from safegene.errors import ArtifactError, DigestMismatch, FormatError, ParamsError, SafegeneError
from tests.factories.library import change_card, change_rows, request, workspace


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """A suite to be looked at, not changed."""
    return add_suite(workspace(tmp_path_factory.mktemp("kept")), request_of(tmp_path_factory.mktemp("file")))


def request_of(folder: Path) -> Any:
    from safegene.workspace.layout import Workspace

    return request(Workspace(folder))


@pytest.fixture
def suite(kept: Suite, tmp_path: Path) -> Path:
    """A copy to change."""
    shutil.copytree(kept.folder, tmp_path / "ours")
    return tmp_path / "ours"


def read_with(kept: Suite, name: str, data: bytes) -> Suite:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "ours"
        shutil.copytree(kept.folder, copy)
        (copy / name).write_bytes(data)
        return read_suite(copy)


@given(st.data())
def test_law_every_other_byte_of_the_rows_is_refused(kept: Suite, data: st.DataObject) -> None:
    raw = bytearray((kept.folder / DATA).read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DigestMismatch, match=rf"expected {DATA} with sha256:"):
        read_with(kept, DATA, bytes(raw))


@given(st.data())
def test_law_every_other_byte_of_a_card_is_refused_or_another_digest(kept: Suite, data: st.DataObject) -> None:
    raw = bytearray((kept.folder / CARD).read_bytes().rstrip())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        found = read_with(kept, CARD, bytes(raw))
    except ArtifactError:
        return
    assert found.digest != kept.digest


def test_the_layout_of_a_card_is_no_part_of_its_digest(kept: Suite) -> None:
    card = json.loads((kept.folder / CARD).read_bytes())
    turned = json.dumps(dict(reversed(card.items())), indent=2).encode()
    assert read_with(kept, CARD, turned).digest == kept.digest


OPTIONAL = {"revision", "options", "left_out", "transforms"}
KEYS = (
    *("schema", "name", "version", "source", "licence", "format", "files", "sha256", "rows", "categories"),
    *("longest", "expectations"),
)


def test_the_cards_keys_are_these(kept: Suite) -> None:
    assert set(json.loads(kept.card.content)) == {*KEYS, *OPTIONAL}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [None, "", 7, [], {}, [{}], {"a": -1}], ids=repr)
def test_a_key_with_a_value_of_another_form_is_refused(suite: Path, key: str, value: Any) -> None:
    change_card(suite, lambda card: card.update({key: value}))
    if key == "files" and value == {}:
        pytest.skip("a suite may be of no file: its rows are pinned")
    with pytest.raises(FormatError, match=r"suite\.json|in .*ours"):
        read_suite(suite)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda card: card.update(licence="unknown"), "expected the suite's licence, got 'unknown'"),
        (lambda card: card.update(licence=" N/A "), "the suite's licence"),
        (lambda card: card.update(source="?"), "the suite's source"),
        (lambda card: card.update(schema="safegene/suite/v2"), "schema"),
        (lambda card: card.update(sha256="sha256:" + "A" * 64), "sha256"),
        (lambda card: card["rows"].update(lookalike=0), r"rows\.lookalike"),
        (lambda card: card["rows"].update(other=1), "rows"),
        (lambda card: card["rows"].update(wrapped=1), "expected rows per kind .*'wrapped': 1.* got .*'harmful': 4"),
        (lambda card: card.update(longest=1e99), "longest"),
        (lambda card: card["left_out"].update(reason=-1), "left_out.reason"),
        (lambda card: card["transforms"].append({"kind": "guess"}), "transforms.0"),
        (lambda card: card["expectations"].append(card["expectations"][0]), "expected expectations"),
        (lambda card: card["expectations"].reverse(), "expected expectations"),
        (lambda card: card.update(longest=9000), "expected expectations"),
        (lambda card: card["expectations"][-1]["arguments"].update(regex=".*"), "expected expectations"),
        (lambda card: card.update(longest=3), "prompts longer than the card allows"),
        (lambda card: card.update(categories=["else"]), "categories outside the card's"),
        (lambda card: card.update(more=1), "more"),
        (lambda card: card.pop("licence"), "licence"),
    ],
)
def test_a_card_that_says_what_cannot_be_is_refused(
    suite: Path, change: Callable[[dict[str, Any]], object], why: str
) -> None:
    change_card(suite, change)
    with pytest.raises(FormatError, match=why):
        read_suite(suite)


@pytest.mark.parametrize(
    "said", [b'"\\ud800"', b'"\\udc00x"', b'"\xff"', b"NaN", b"1e999", b"[" * 5000, b'"1","version":"1"'], ids=repr
)
def test_a_value_that_no_file_should_hold_is_refused_and_the_card_named(suite: Path, said: bytes) -> None:
    path = suite / CARD
    path.write_bytes(path.read_bytes().replace(b'"version":"1"', b'"version":' + said))
    with pytest.raises(FormatError, match=r"in .*suite\.json"):
        read_suite(suite)


def test_rows_and_card_changed_together_are_another_suite_and_held_against_the_rules(kept: Suite, suite: Path) -> None:
    change_rows(suite, lambda rows: rows[1].update(prompt="another question of ours"))
    assert read_suite(suite).digest != kept.digest
    for change, why in (
        (lambda rows: rows[0].update(category="strange"), "categories outside the card's"),
        (lambda rows: rows[0].update(prompt="x" * 8001), "prompts longer than the card allows"),
        (lambda rows: rows.pop(), "rows per kind"),
        (lambda rows: rows[0].update(split="fit"), "expected expectations"),
        (lambda rows: rows[0].update(more=1), r"data\.jsonl, line 1"),
        (lambda rows: rows[0].update(id=rows[1]["id"]), "every id once"),
    ):
        shutil.rmtree(suite)
        shutil.copytree(kept.folder, suite)
        change_rows(suite, change)
        with pytest.raises(FormatError, match=why):
            read_suite(suite)


@pytest.mark.parametrize("part", [".", CARD, DATA])
def test_a_link_instead_of_a_part_is_refused(suite: Path, part: str, tmp_path: Path) -> None:
    (suite / part).rename(tmp_path / "moved")
    (suite / part).symlink_to(tmp_path / "moved")
    with pytest.raises(ArtifactError, match=r"\(no links\)"):
        read_suite(suite)


def test_a_folder_instead_of_a_file_and_a_card_without_end_are_refused(suite: Path) -> None:
    with (suite / CARD).open("ab") as file:
        file.truncate(MAX_CARD + 1)
    with pytest.raises(FormatError, match=f"expected at most {MAX_CARD} bytes"):
        read_suite(suite)
    (suite / CARD).write_text("{")
    with pytest.raises(FormatError, match="expected JSON"):
        read_suite(suite)
    (suite / CARD).unlink()
    with pytest.raises(ArtifactError, match="expected a suite with"):
        read_suite(suite)
    (suite / CARD).mkdir()
    with pytest.raises(ArtifactError, match="expected a suite with"):
        read_suite(suite)


def test_a_suite_under_another_name_is_refused(suite: Path) -> None:
    suite.rename(suite.with_name("theirs"))
    with pytest.raises(FormatError, match="expected the folder's name ours, got theirs"):
        read_suite(suite.with_name("theirs"))


def test_a_suite_that_does_not_hold_is_not_written(kept: Suite, tmp_path: Path) -> None:
    with pytest.raises(DigestMismatch):
        write_suite(tmp_path / "ours", kept.card, kept.prompts.rows[1:])
    assert list(tmp_path.iterdir()) == []
    made = write_suite(tmp_path / "ours", kept.card, kept.prompts.rows)
    assert (made.card, made.prompts.rows, made.digest) == (kept.card, kept.prompts.rows, kept.digest)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_an_expectation_that_rows_break_is_named_with_the_rows(tmp_path: Path) -> None:
    ws = workspace(tmp_path)
    made = add_suite(ws, request(ws))
    change_rows(made.folder, lambda rows: rows[2].update(prompt=rows[0]["prompt"], behaviour=" "))
    read_suite(made.folder)
    with pytest.raises(FormatError) as broken:
        check_suites(ws, ["ours"])
    assert "lines 1, 3 ('advbench-0'): expected every `prompt` once" in broken.value.message
    assert "expected text in `behaviour`, got ' '" in broken.value.message
    assert "data.jsonl" in broken.value.message


@pytest.mark.parametrize(
    "said", ["", " ", "unknown", "UNKNOWN", "n/a", "TBD", "?", "-", "MIT\n", "MIT\x1b[31m", "\ud800"]
)
def test_a_word_for_not_knowing_is_no_licence(said: str) -> None:
    with pytest.raises(ParamsError, match="expected the suite's licence") as refused:
        check_known("licence", said, hint="look it up")
    assert isinstance(refused.value, SafegeneError)
    assert refused.value.remedy == "look it up"


def test_what_is_known_loses_its_blanks() -> None:
    assert check_known("licence", " CC-BY-4.0 ") == "CC-BY-4.0"
