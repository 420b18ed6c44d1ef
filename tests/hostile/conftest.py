"""A good checkpoint and a good adapter, for a test to spoil."""

from pathlib import Path

import pytest

from tests.factories.llamas import copy, save_adapter, save_llama


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("whole") / "llama")


@pytest.fixture
def llama(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good checkpoint, for a test to spoil."""
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    return copy(whole, tmp_path / "llama")


@pytest.fixture
def lora(llama: Path) -> Path:
    return save_adapter(llama.parent / "lora", llama)
