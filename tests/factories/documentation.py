"""The pages that people read, their fenced blocks, and the commands in these."""

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```", re.M | re.S)
SHELL = {"console", "sh", "bash", ""}
RUN, WALK = "<!-- run -->", "<!-- walk -->"
PROGRAMS = ("safegene", "make", "dvc", "prefect", "git", "pip", "python3.11", "pre-commit", "cd")
"""Programs with which a line of a block without a language is a command."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page: its language, its text without indentation, and where it stands."""

    page: Path
    language: str
    text: str
    line: int
    marked: bool = False
    """Whether a comment such as ``<!-- run -->`` stands on the line before: a test executes the whole block."""

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The commands of a ``console`` block, its prompts taken off."""
        return [line.removeprefix("$ ") for line in self.text.splitlines() if line.startswith("$ ")]


@dataclass(frozen=True)
class CommandLine:
    """One simple command of a block for a shell, as words; ``page`` is relative to the repository."""

    page: str
    where: str
    words: tuple[str, ...]
    marked: bool = False

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def begins(self, *beginnings: str) -> str | None:
        """The longest of these beginnings, whole words, with which the command begins."""
        found = [beginning for beginning in beginnings if f"{self.text} ".startswith(f"{beginning} ")]
        return max(found, key=len, default=None)


def read_pages() -> list[Path]:
    """Every Markdown file that people read."""
    folders = [ROOT / "docs", ROOT / ".github", ROOT / "deploy"]
    return sorted([*ROOT.glob("*.md"), *(path for folder in folders for path in folder.rglob("*.md"))])


def read_blocks(pages: Iterable[Path]) -> list[Block]:
    """Every fenced block of the pages."""
    found = list[Block]()
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            indent = match["indent"]
            lines = [line.removeprefix(indent) for line in match["text"].splitlines()]
            before = text[: match.start()]
            marked = before.rstrip().endswith((RUN, WALK))
            found.append(Block(page, match["language"], "\n".join(lines) + "\n", before.count("\n") + 1, marked))
    return found


def split_commands(line: str) -> list[list[str]]:
    """The simple commands of a shell line, each as words; comments, ``&&`` and redirections taken off."""
    words, found = shlex.split(line, comments=True), list[list[str]]([[]])
    for word in words:
        if word in ("&&", "||", ";", "|", "&"):
            found.append([])
        else:
            found[-1].append(word)
    return [words for words in found if words]


def command_lines(blocks: Iterable[Block]) -> Iterator[CommandLine]:
    """Every command of a block for a shell, in the order of the pages."""
    for block in blocks:
        if block.language not in SHELL:
            continue
        text = "\n".join(block.commands) if block.language == "console" else block.text
        for line in re.sub(r"\\\n\s*", " ", text).splitlines():
            if block.language or line.split(" ")[0] in PROGRAMS:
                for words in split_commands(line):
                    yield CommandLine(str(block.page.relative_to(ROOT)), block.where, tuple(words), block.marked)
