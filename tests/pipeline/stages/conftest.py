"""Fixtures of stage ``evaluate``."""

from pathlib import Path

import pytest

from tests.factories.evaluation import Counter, World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SAFEGENE_DEVICE", "cpu")
    return World(tmp_path)


@pytest.fixture
def counter(world: World) -> Counter:
    counting = Counter()
    world.generate = counting
    return counting
