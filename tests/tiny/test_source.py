"""``tiny://`` is a source scheme like any plug-in's: registered by an entry point, found by its name."""

import ast
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from safegene.checkpoints.sources.uri import open_source, parse, scheme_named
from safegene.errors import SourceError
from safegene.tiny.build import build, recipe_digest
from safegene.tiny.source import SCHEME, TinySource
from safegene.workspace.digest import digest_file

PACKAGE = Path(__file__).parents[2] / "safegene"


def test_the_scheme_is_registered_as_an_entry_point() -> None:
    (entry,) = entry_points(group="safegene.sources", name="tiny")
    assert entry.value == "safegene.tiny.source:SCHEME"
    assert scheme_named("tiny") is SCHEME


def test_no_room_but_the_commands_imports_it() -> None:
    importers = set[str]()
    for path in PACKAGE.rglob("*.py"):
        names = [
            node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
        ]
        if any(name.startswith("safegene.tiny") for name in names):
            importers.add(path.relative_to(PACKAGE).parts[0])
    assert importers == {"tiny", "cli"}


def test_a_uri_names_a_member_and_its_seed() -> None:
    place = parse("tiny://sentiment?seed=3")
    assert (place.scheme, place.path, place.seed) == ("tiny", "sentiment", 3)
    assert parse("tiny://sentiment").seed == 0


@pytest.mark.parametrize(
    "uri",
    [
        "tiny://",
        "tiny://a/b",
        "tiny://A",
        "tiny://a?seed=x",
        "tiny://a?seed=-1",
        "tiny://a?seed=1&seed=2",
        "tiny://a?more=1",
    ],
)
def test_another_form_is_refused(uri: str) -> None:
    with pytest.raises(SourceError, match=r"tiny://NAME\[\?seed=N\]"):
        parse(uri)


def test_its_files_are_those_of_the_member(tmp_path: Path) -> None:
    source = open_source(parse("tiny://aligned?seed=0"))
    assert isinstance(source, TinySource)
    folder = build("aligned", 0)
    assert source.sizes() == {path.name: path.stat().st_size for path in folder.iterdir()}
    source.copy(("config.json",), tmp_path)
    assert digest_file(tmp_path / "config.json") == digest_file(folder / "config.json")


def test_its_fingerprint_is_known_before_it_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    assert open_source(parse("tiny://topic?seed=7")).fingerprint() == recipe_digest("topic", 7)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_unknown_member_is_an_error() -> None:
    with pytest.raises(SourceError, match="expected one of base, aligned"):
        open_source(parse("tiny://nobody")).fingerprint()


def test_the_scheme_is_loaded_without_torch() -> None:
    code = "import sys, safegene.tiny.source; print('torch' in sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert shown.stdout.strip() == "False"
