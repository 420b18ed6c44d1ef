"""What the tests of the documentation share: the pages, their fenced blocks, and the hook that generates references."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.factories.documentation import ROOT, Block, read_blocks, read_pages


@pytest.fixture(scope="session")
def pages() -> list[Path]:
    """Every Markdown file that people read."""
    found = read_pages()
    assert len(found) > 20
    return found


@pytest.fixture(scope="session")
def blocks(pages: list[Path]) -> list[Block]:
    """Every fenced block of the pages."""
    return read_blocks(pages)


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The MkDocs hook ``docs/gen/reference.py``."""
    spec = importlib.util.spec_from_file_location("docs_reference", ROOT / "docs" / "gen" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
