"""What the tests of the documentation share: the pages, their fenced blocks, and the hook that generates references."""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page: its language, its text without indentation, and where it stands."""

    page: Path
    language: str
    text: str
    line: int

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The commands of a ``console`` block, its prompts taken off."""
        return [line.removeprefix("$ ") for line in self.text.splitlines() if line.startswith("$ ")]


@pytest.fixture(scope="session")
def pages() -> list[Path]:
    """Every Markdown file that people read."""
    folders = [ROOT / "docs", ROOT / ".github"]
    found = [*ROOT.glob("*.md"), *(path for folder in folders for path in folder.rglob("*.md"))]
    assert len(found) > 20
    return sorted(found)


@pytest.fixture(scope="session")
def blocks(pages: list[Path]) -> list[Block]:
    """Every fenced block of the pages."""
    found = list[Block]()
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            indent = match["indent"]
            lines = [line.removeprefix(indent) for line in match["text"].splitlines()]
            found.append(Block(page, match["language"], "\n".join(lines) + "\n", text[: match.start()].count("\n") + 1))
    return found


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The MkDocs hook ``docs/gen/reference.py``."""
    spec = importlib.util.spec_from_file_location("docs_reference", ROOT / "docs" / "gen" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
