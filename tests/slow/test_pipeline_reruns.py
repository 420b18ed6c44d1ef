"""A changed parameter reruns its stage and what depends on it, nothing before."""

from pathlib import Path

import pytest

from safegene.workspace.manifest import read_manifest
from tests.factories.commands import run, status

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def ran(stderr: str) -> set[str]:
    """Stages that the run's console shows with a time instead of 'unchanged'."""
    lines = [line.split() for line in stderr.splitlines() if line.strip().startswith("ok ")]
    return {words[1].split("@")[0] for words in lines if words[-1] == "s"}


def unchanged(stderr: str) -> set[str]:
    lines = [line.split() for line in stderr.splitlines() if line.strip().startswith("ok ")]
    return {words[1].split("@")[0] for words in lines if words[-1] == "unchanged"}


def test_changed_rank_reruns_compress_and_what_depends_on_it(copy: Path, prefect_api: str) -> None:
    before = read_manifest(copy / "data/family/vector").facts["numbers"]
    path = copy / "params.yaml"
    text = path.read_text()
    assert "\n  rank: 64\n" in text
    path.write_text(text.replace("\n  rank: 64\n", "\n  rank: 8\n", 1))
    done = run(copy, "run", code=(0, 3, 4), PREFECT_API_URL=prefect_api)
    assert ran(done.stderr) == {"compress", "select", "calibrate", "evaluate", "gate"}
    assert unchanged(done.stderr) == {"validate", "fetch", "degrade", "extract", "fetch-target"}
    assert read_manifest(copy / "data/family/vector").facts["numbers"] < before
    assert 0 < status(copy)["sentiment"]["extra_params"] <= 0.01, "the adapter's limit is calibrate's, not the rank"


def test_nothing_changed_runs_nothing(copy: Path, prefect_api: str) -> None:
    done = run(copy, "run", PREFECT_API_URL=prefect_api)
    assert ran(done.stderr) == set()
    assert len(unchanged(done.stderr)) == 10
