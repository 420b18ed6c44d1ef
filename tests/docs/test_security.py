"""SECURITY.md names every file of a target that is opened, guards that exist, and tests that exist."""

import ast
import re
from pathlib import Path

from safegene.checkpoints.wanted import WANTED

ROOT = Path(__file__).parents[2]
SECURITY = (ROOT / "SECURITY.md").read_text()


def table() -> list[list[str]]:
    """The rows of the table of a target's files."""
    section = SECURITY.split("## What a target's folder can change\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_every_file_that_is_opened_has_a_guard_and_a_test() -> None:
    named = {name for file, *_ in table() for name in quoted(file)}
    assert set(WANTED) <= named
    assert all(len(row) == 4 and all(row) for row in table())


def test_the_guards_exist() -> None:
    paths = {name for _, _, guard, _ in table() for name in quoted(guard) if "/" in name or name.endswith(".py")}
    assert paths
    assert [path for path in sorted(paths) if not (ROOT / "safegene" / path).exists()] == []


def test_the_tests_exist() -> None:
    for row in table():
        assert quoted(row[3])
        for name in quoted(row[3]):
            path, _, function = name.partition("::")
            tree = ast.parse((ROOT / path).read_text())
            assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name
