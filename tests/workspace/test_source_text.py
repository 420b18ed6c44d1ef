"""Sources as people write them: one reading each, or a refusal that names both."""

from pathlib import Path

import pytest

from safegene.checkpoints.sources import discover, fingerprint
from safegene.checkpoints.sources.uri import as_uri, parse
from safegene.errors import SourceError
from safegene.workspace.source_text import source_uri


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("/models/chat", "file:///models/chat"),
        ("./chat", "file://{base}/chat"),
        ("../chat", "file://{above}/chat"),
        ("a b", "file://{base}/a%20b"),
        ("plain", "file://{base}/plain"),
        ("deep/er/still", "file://{base}/deep/er/still"),
        ("org/model", "hf://org/model"),
        ("Org/Model-7B.v2@refs/pr/1", "hf://Org/Model-7B.v2@refs/pr/1"),
        ("hf://org/model", "hf://org/model"),
        ("s3://bucket/x", "s3://bucket/x"),
        ("file:///x", "file:///x"),
    ],
)
def test_a_text_with_one_reading(tmp_path: Path, text: str, uri: str) -> None:
    for name in ("plain", "a b", "deep/er/still"):
        (tmp_path / name).mkdir(parents=True)
    assert source_uri(text, tmp_path) == uri.format(base=tmp_path, above=tmp_path.parent)


def test_a_folder_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert source_uri("~/chat", Path("/elsewhere")) == f"file://{tmp_path}/chat"


def test_two_readings_are_refused_and_each_remedy_is_one(tmp_path: Path) -> None:
    (tmp_path / "org/model").mkdir(parents=True)
    with pytest.raises(ValueError, match="two") as refused:
        source_uri("org/model", tmp_path)
    assert "write ./org/model" in str(refused.value)
    assert "write hf://org/model" in str(refused.value)
    assert source_uri("./org/model", tmp_path) == f"file://{tmp_path}/org/model"
    assert source_uri("hf://org/model", tmp_path) == "hf://org/model"


@pytest.mark.parametrize("text", ["nonsense", "a/b/c", "", " ", "a\nb", "a/../b", "org/"])
def test_a_text_without_a_reading_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        source_uri(text, tmp_path)
    with pytest.raises(SourceError, match="expected"):
        as_uri(text, tmp_path)


def test_the_parser_of_uris_takes_a_path_too(tmp_path: Path) -> None:
    assert parse(str(tmp_path)).path == str(tmp_path)
    assert parse("org/model@main").revision == "main"


@pytest.mark.parametrize("text", ["a" * 5000, "~no-such-user/chat", "a/b/" + "c" * 300])
def test_a_name_that_no_folder_can_have_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        source_uri(text, tmp_path)


@pytest.mark.parametrize("text", ["/" + "a" * 5000, "./" + "b" * 300, "file:///" + "c" * 300])
def test_a_folder_of_a_name_that_is_too_long_is_not_there(text: str) -> None:
    with pytest.raises(SourceError, match="expected a checkpoint folder, got none"):
        fingerprint(text)
    with pytest.raises(SourceError, match="expected a folder to watch, got none"):
        discover(text)
