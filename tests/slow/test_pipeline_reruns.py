"""A changed parameter reruns its stage and what depends on it, nothing before."""

import pytest

from tests.conftest import run, status

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def ran(stderr: str) -> set[str]:
    """Stages that the run's console shows with a time instead of 'unchanged'."""
    lines = [line.split() for line in stderr.splitlines() if line.strip().startswith("ok ")]
    return {words[1].split("@")[0] for words in lines if words[-1] == "s"}


def unchanged(stderr: str) -> set[str]:
    lines = [line.split() for line in stderr.splitlines() if line.strip().startswith("ok ")]
    return {words[1].split("@")[0] for words in lines if words[-1] == "unchanged"}


def test_changed_rank_reruns_compress_and_what_depends_on_it(copy, prefect_api):
    before = status(copy)["sentiment"]["extra_params"]
    path = copy / "params.yaml"
    path.write_text(path.read_text().replace("  rank: 4", "  rank: 3", 1))
    done = run(copy, "run", code=None, PREFECT_API_URL=prefect_api)
    assert ran(done.stderr) == {"compress", "select", "calibrate", "evaluate", "gate"}
    assert unchanged(done.stderr) == {"validate", "fetch", "degrade", "extract", "fetch-target"}
    assert status(copy)["sentiment"]["extra_params"] != before


def test_nothing_changed_runs_nothing(copy, prefect_api):
    done = run(copy, "run", code=None, PREFECT_API_URL=prefect_api)
    assert ran(done.stderr) == set()
    assert len(unchanged(done.stderr)) == 10
