"""Every command line of the README and the documentation is accounted for, and a page's new line must be.

A command of a fenced block is one of

- *executed*: the line runs as it stands, here in a workspace of small artefacts, in tests/slow on the demo, or in the
  test that reads the same block; only words that stand for a person's own, such as ``sha256:DIGEST`` or
  ``s3://models/...``, are replaced (`scenarios`);
- *elsewhere*: a named test executes the same command with every option of the line, and with arguments of its own,
  because it needs models, a server or minutes;
- *listed*: no test runs it, for the reason that stands beside it.

Every line of safegene is parsed whole, besides, by the real command line, so that a wrong option or value fails. A
command that only a sentence or a table names is executed by some test, with other options perhaps.
"""

import ast
import contextlib
import io
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from safegene.cli.app import app
from tests.docs.scenarios import ELSEWHERE, LISTED, PAGES, READ_BY
from tests.docs.test_commands import PROSE, problems_of
from tests.factories.documentation import CommandLine, command_lines

ROOT = Path(__file__).resolve().parents[2]


def safegene(*words: str) -> int:
    """Run the command line in this process; its exit code."""
    with contextlib.redirect_stdout(io.StringIO()):
        return int(get_command(app).main([*words], standalone_mode=False) or 0)


def how(line: CommandLine) -> tuple[str, str]:
    """How a command is accounted for, and by what: a page, a test, or a reason; ("", "") where it is not."""
    scenario = PAGES.get(line.page)
    if scenario and line.marked:
        return "executed", READ_BY[line.page]
    if scenario and line.begins(*scenario.on_demo) is not None:
        return "executed", "tests/slow/test_demo.py"
    if (named := line.begins(*ELSEWHERE)) is not None:
        return "elsewhere", ELSEWHERE[named]
    if (named := line.begins(*LISTED)) is not None:
        return "listed", LISTED[named]
    if scenario is None or line.words[0] != "safegene":
        return "", ""
    if (named := line.begins(*scenario.elsewhere)) is not None:
        return "elsewhere", scenario.elsewhere[named]
    return "executed", "here"


@pytest.mark.parametrize("page", [page for page, scenario in PAGES.items() if scenario.prepare])
def test_the_commands_of_a_page_run_as_they_stand(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: list[Any], request: pytest.FixtureRequest
) -> None:
    scenario, done = PAGES[page], 0
    assert scenario.prepare is not None
    if scenario.public_sets:
        request.getfixturevalue("test_data")
    monkeypatch.setenv("SAFEGENE_KEYS", str(tmp_path / "keys"))
    prepared = scenario.prepare(tmp_path)
    monkeypatch.chdir(prepared.folder)
    for line in command_lines(blocks):
        if line.page != page or line.marked or how(line)[1] not in ("here", LISTED["cd"]):
            continue
        if line.words[0] == "cd":
            os.chdir(prepared.values.get(line.words[1], line.words[1]))
            continue
        if (begun := line.begins(*prepared.before)) is not None:
            prepared.before[begun]()
        begun = line.begins(*prepared.codes)
        words = [prepared.values.get(word, word) for word in line.words[1:]]
        assert safegene(*words) == (prepared.codes[begun] if begun else 0), f"{line.where}: {line.text}"
        done += 1
    assert done


def spoken(node: ast.AST) -> list[str]:
    """The constant words of a call, a list or a tuple, in their order."""
    parts = node.args if isinstance(node, ast.Call) else node.elts if isinstance(node, ast.List | ast.Tuple) else []
    return [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def words_of(path: Path) -> str:
    """The words of every call, list and tuple of a test, a line each, with a space around each word."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return "\n".join(f" {' '.join(words)} " for node in ast.walk(tree) if (words := spoken(node)))


@pytest.fixture(scope="module")
def executed() -> str:
    return "\n".join(map(words_of, (ROOT / "tests").rglob("*.py")))


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


def test_every_line_of_safegene_parses(blocks: list[Any]) -> None:
    lines = [line for line in command_lines(blocks) if line.words[0] == "safegene"]
    wrong = [(line.where, line.text, found) for line in lines for found in problems_of([*line.words], whole=True)]
    assert not wrong
    assert len(lines) > 100


def test_every_line_is_executed_or_listed_with_a_reason(blocks: list[Any]) -> None:
    """What *elsewhere* claims is looked up: the named test has the command's words and its options."""
    counts, missing = Counter[str](), list[str]()
    for line in command_lines(blocks):
        kind, by = how(line)
        counts[kind or "nothing"] += 1
        if not kind:
            missing.append(f"{line.where}: {line.text}")
        elif kind == "elsewhere" and line.words[0] == "safegene":
            said, path = words_of(ROOT / by), verb([*line.words])
            options = {word.split("=")[0] for word in line.words if word.startswith("--")}
            if f" {path} " not in said or any(f" {option} " not in said.replace("\n", " ") for option in options):
                missing.append(f"{line.where}: {line.text}: not in {by}")
        elif kind == "elsewhere" and not (ROOT / by).is_file():
            missing.append(f"{line.where}: {line.text}: no {by}")
    said = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items()))
    assert not missing, f"of {counts.total()} command lines: {said}; expected none in this list: {missing}"
    assert counts["executed"] > 2 * counts["elsewhere"], said


def test_every_page_and_reason_is_used(blocks: list[Any]) -> None:
    lines = [*command_lines(blocks)]
    assert {line.page for line in lines} >= {*PAGES, *READ_BY}
    assert not [name for name in [*LISTED, *ELSEWHERE] if not any(line.begins(name) for line in lines)]
    for page, scenario in PAGES.items():
        ours = [line for line in lines if line.page == page]
        begun = [*scenario.elsewhere, *scenario.on_demo]
        assert not [beginning for beginning in begun if not any(line.begins(beginning) for line in ours)], page


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
