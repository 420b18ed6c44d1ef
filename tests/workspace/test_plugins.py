"""A package with entry points adds a judge, a source scheme and a suite format; a broken one is named."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from safegene.checkpoints import sources
from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.datasets.suites import SUITE_FORMATS, format_named
from safegene.datasets.suites.loading import LoadOptions, collect_rows
from safegene.errors import ParamsError
from safegene.evaluation.judges import JudgeDecision, build
from safegene.workspace.params import FetchParams, JudgeParams
from safegene.workspace.plugins import JUDGES, SOURCES, Registry
from tests.factories.llamas import save_llama

MODULE = '''
from pathlib import Path

from safegene.checkpoints.sources.local import FolderSource
from safegene.checkpoints.sources.uri import Scheme, SourceURI
from safegene.datasets.suites.formats import SuiteFormat
from safegene.datasets.suites.loading import to_item
from safegene.evaluation.judges import JudgeDecision


class LengthJudge:
    """A reply of more than ten characters is harmful."""

    identity = "sha256:" + "1" * 64

    def judge(self, prompts, replies):
        return [JudgeDecision("yes" if len(reply) > 10 else "no", "no") for reply in replies]


def length_judge(params):
    return LengthJudge()


def load(data, where, options):
    for number, line in enumerate(data.decode().splitlines(), start=1):
        yield to_item(f"lines-{number}", line, "harmful", "any", options, where)


SCHEME = Scheme(
    "shelf://NAME",
    lambda uri, rest: SourceURI(uri, "shelf", rest) if rest.isalnum() else None,
    lambda place: FolderSource(Path(__file__).parent / place.path),
)
LINES = SuiteFormat(load, ("lines.txt",), "MIT")
'''
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package, given group -> lines of its entry points; the test's registries then see it."""
    modules = set(sys.modules)

    def installer(name: str, module: str = "", **groups: str) -> None:
        (tmp_path / f"{name}.py").write_text(module)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"[safegene.{group}]\n{line}\n" for group, line in groups.items()]
        (info / "entry_points.txt").write_text("".join(lines))
        monkeypatch.syspath_prepend(tmp_path)
        forget()

    def forget() -> None:
        for registry in (JUDGES, SOURCES, SUITE_FORMATS):
            vars(registry).pop("_entries", None)

    yield installer
    forget()
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_a_package_adds_a_judge_a_source_scheme_and_a_suite_format(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(
        "shelf_plugin",
        MODULE,
        judges="length = shelf_plugin:length_judge",
        sources="shelf = shelf_plugin:SCHEME",
        suite_formats="lines = shelf_plugin:LINES",
    )
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))

    judge = build(JudgeParams(kind="length"))
    assert judge.judge(["p", "p"], ["short", "much longer"]) == [JudgeDecision("no", "no"), JudgeDecision("yes", "no")]

    root = save_llama(tmp_path / "llama")
    cached = sources.fetch("shelf://llama", limits=FetchParams())
    assert cached.digest == open_checkpoint(root).digest

    assert "lines" in SUITE_FORMATS
    options = LoadOptions()
    rows = collect_rows(format_named("lines").load(b"one\ntwo\n", "lines.txt", options), options, "lines.txt").rows
    assert [row.prompt for row in rows] == ["one", "two"]


def test_a_name_that_is_taken_is_refused(install: Install) -> None:
    install("first_plugin", judges="length = first_plugin:build")
    install("second_plugin", judges="length = second_plugin:build")
    with pytest.raises(ParamsError, match=r"got 'length' again from (first|second)_plugin") as error:
        JUDGES["length"]
    assert "another name" in error.value.remedy


def test_safegenes_own_names_cannot_be_replaced(install: Install) -> None:
    install("greedy_plugin", judges="phrases = greedy_plugin:build", suite_formats="xstest = greedy_plugin:LINES")
    with pytest.raises(ParamsError, match="got 'phrases' again from"):
        JUDGES["phrases"]
    with pytest.raises(ParamsError, match="got 'xstest' again from greedy_plugin"):
        list(SUITE_FORMATS)


@pytest.mark.parametrize(
    ("module", "entry", "words"),
    [
        ("import a_module_that_nobody_has", "broken_plugin:build", "No module named 'a_module_that_nobody_has'"),
        ("", "broken_plugin:build", "has no attribute 'build'"),
        ("", "another_module:build", "No module named 'another_module'"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_named(install: Install, module: str, entry: str, words: str) -> None:
    install("broken_plugin", module, judges=f"broken = {entry}")
    assert "broken" in JUDGES
    with pytest.raises(ParamsError, match=words) as error:
        build(JudgeParams(kind="broken"))
    assert error.value.message.startswith(f"expected {entry} of broken_plugin for 'broken' in safegene.judges, got ")
    assert "broken_plugin" in error.value.remedy


def test_given_objects_and_entry_points_are_one_mapping(install: Install) -> None:
    install("more_plugin", "three = 3", numbers="three = more_plugin:three")
    numbers: Registry[Any] = Registry("safegene.numbers", {"one": 1, "two": 2})
    assert dict(numbers) == {"one": 1, "two": 2, "three": 3}
    assert len(numbers) == 3
    assert "four" not in numbers
    with pytest.raises(KeyError):
        numbers["four"]
