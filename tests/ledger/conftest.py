from pathlib import Path

import pytest

from safegene.workspace.layout import Workspace
from tests.factories.ledger import make_workspace


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with one target, run up to a passing verdict, and a cache of its own."""
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    return make_workspace(tmp_path / "ws")
