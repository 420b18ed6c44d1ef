from pathlib import Path

import pytest

from safegene.workspace.layout import Workspace
from tests.factories.approvals import As
from tests.factories.ledger import make_workspace, share_cache_key


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with one target, run up to a passing verdict, and a cache of its own."""
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    return make_workspace(tmp_path / "ws")


@pytest.fixture
def people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> As:
    """Sign as somebody: each person has a folder of keys, with the one key of their common cache."""
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))

    def become(name: str) -> None:
        share_cache_key(tmp_path / name)
        monkeypatch.setenv("SAFEGENE_KEYS", str(tmp_path / name))

    return become
