"""Every command of the README and the documentation is executed by a test: here, or by one that is named here."""

import ast
import contextlib
import io
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from safegene.cli.app import app
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest
from tests.docs.test_commands import PROSE, SHELL, split_commands
from tests.factories.ledger import attempt, make_target, make_workspace

ROOT = Path(__file__).resolve().parents[2]
TARGET = "support-bot"  # as the pages call it
OTHER_PROGRAMS = {
    "make demo": "README.md",
    "make test": ".ci/run",
    "make test-slow": ".ci/run",
    "make lint": "tests/docs/test_habits.py",
    "dvc pull": "tests/slow/test_pipeline_reruns.py",
    "prefect server": "tests/slow/test_deployments.py",
}
OF_THE_READER = {"cd", ".", "export", "git", "sed", "pip", "python3.11", "pre-commit", "touch"}
"""Programs of the reader's own machine, which no test of this project runs."""


@dataclass(frozen=True)
class Scenario:
    """How the commands of a page are executed.

    Attributes:
        prepare: makes the workspace of which the page speaks; returns what stands for the page's placeholders.
        elsewhere: beginnings of commands that need models or servers; another test executes the verb.
    """

    prepare: Callable[[Workspace], Mapping[str, str]]
    elsewhere: tuple[str, ...] = ()


def _audited(ws: Workspace) -> Mapping[str, str]:
    assert [attempt(ws, TARGET, alpha=1.0), attempt(ws, TARGET, alpha=2.0)] == ["pass", "pass"]
    return {"sha256:DIGEST": read_manifest(ws.vector).digest, "12": "0"}


def _rolled_back(ws: Workspace) -> Mapping[str, str]:
    return {**_audited(ws), "sha256:DIGEST": read_manifest(ws.candidate(TARGET)).digest}


PAGES = {
    "docs/how-to/audit.md": Scenario(
        _audited,
        elsewhere=tuple(
            f"safegene audit {words}" for words in ("replay", "export model-card", "export gto", "export mlflow")
        ),
    ),
    "docs/how-to/rollback.md": Scenario(_rolled_back),
}


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with a target of the pages' name, run up to a verdict."""
    monkeypatch.setenv("SAFEGENE_KEYS", str(tmp_path / "keys"))
    ws = make_workspace(tmp_path / "ws")
    make_target(ws, TARGET)
    monkeypatch.chdir(ws.root)
    return ws


def safegene(words: list[str]) -> int:
    """Run the command line in this process; its exit code."""
    with contextlib.redirect_stdout(io.StringIO()):
        return int(get_command(app).main(words[1:], standalone_mode=False) or 0)


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_as_they_stand(page: str, ws: Workspace, blocks: list[Any]) -> None:
    scenario, done = PAGES[page], 0
    values = scenario.prepare(ws)
    for block in blocks:
        if str(block.page.relative_to(ROOT)) != page or block.language != "console":
            continue
        for line in block.commands:
            if line.startswith(scenario.elsewhere or ("\0",)):
                continue
            words = [values.get(word, word) for word in shlex.split(line)]
            assert safegene(words) == 0, line
            done += 1
    assert done > 2


def spoken(node: ast.AST) -> list[str]:
    """The constant words of a call, a list or a tuple, in their order."""
    parts = node.args if isinstance(node, ast.Call) else node.elts if isinstance(node, ast.List | ast.Tuple) else []
    return [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]


@pytest.fixture(scope="module")
def executed() -> str:
    """The words of every call, list and tuple of the tests, with a space around each word."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "tests").rglob("*.py"))
    return "\n".join(f" {' '.join(words)} " for tree in trees for node in ast.walk(tree) if (words := spoken(node)))


def verb(words: list[str]) -> str:
    """The command and its subcommands, without arguments: ``audit show``."""
    command: Any = get_command(app)
    path = list[str]()
    for word in words[1:]:
        if not hasattr(command, "commands") or word not in command.commands:
            break
        path.append(word)
        command = command.commands[word]
    return " ".join(path)


def commands(blocks: list[Any]) -> Iterator[tuple[str, list[str]]]:
    """(where, words) of every command of a block for a shell."""
    for block in blocks:
        if block.language not in SHELL:
            continue
        text = "\n".join(block.commands) if block.language == "console" else block.text
        for line in re.sub(r"\\\n\s*", " ", text).splitlines():
            if block.language == "console" or line.split(" ")[0] in ("safegene", "make", "dvc", "prefect"):
                yield from ((block.where, words) for words in split_commands(line))


def test_every_command_of_a_block_is_executed_by_a_test(blocks: list[Any], executed: str) -> None:
    missing, seen = set[str](), set[str]()
    for where, words in commands(blocks):
        name, ours = words[0], verb(words)
        if name == "safegene" and ours:
            seen.add(ours)
            missing |= set() if f" {ours} " in executed else {f"{where}: safegene {ours}"}
        elif name != "safegene" and name not in OF_THE_READER and " ".join(words[:2]) not in OTHER_PROGRAMS:
            missing.add(f"{where}: {' '.join(words)}")
    assert not missing
    assert len(seen) > 25


def test_every_command_named_in_a_sentence_or_a_table_is_executed_by_a_test(pages: list[Path], executed: str) -> None:
    missing, seen = set[str](), set[str]()
    for page in pages:
        if page.name == "CHANGELOG.md":
            continue  # it tells of the past
        for text in PROSE.findall(page.read_text(encoding="utf-8")):
            if ours := verb(text.replace("|", " ").split()):
                seen.add(ours)
                missing |= set() if f" {ours} " in executed else {f"{page.name}: safegene {ours}"}
    assert not missing
    assert len(seen) > 40
