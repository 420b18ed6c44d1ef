"""One workspace makes a vector and publishes it; another, without surrogates and delta, uses it: the same verdict."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from safegene.pipeline.init import add_target, init
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest
from tests.factories.commands import dvc, git, run, status

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SAME = ("vector", "selection", "target", "candidate", "judgements", "verdict")


@pytest.fixture(scope="module")
def second(built: Path, tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> Workspace:
    """Another team's workspace after its first run, with the vector of a copy of `built`."""
    box = tmp_path_factory.mktemp("travel")
    first = shutil.copytree(built, box / "first", symlinks=True)
    done = json.loads(run(first, "vector", "publish", str(box / "v1"), "--licence", "Apache-2.0", "--json").stdout)
    assert done["targets"] == 1
    ws = init(box / "second", params=built / "params.yaml")
    params = yaml.safe_load((ws.root / "params.yaml").read_text())
    params["family"] |= {"vector": done["uri"], "publisher": done["publisher"]}
    (ws.root / "params.yaml").write_text(yaml.safe_dump(params))
    git(ws.root, "add", "--all")
    git(ws.root, "commit", "--quiet", "-m", "use a published vector")
    add_target(ws, "sentiment", "tiny://sentiment?seed=0", "sentiment")
    log = run(ws.root, "run", PREFECT_API_URL=prefect_api).stderr
    assert "ok fetch-vector" in log
    assert not [name for name in ("degrade", "extract", "compress", "select") if f"ok {name}" in log]
    return ws


def test_the_same_coefficients_and_verdict_without_surrogates_and_delta(built: Path, second: Workspace) -> None:
    first = Workspace(built)
    assert not second.degraded.exists()
    assert not second.delta.exists()
    digests = [{name: read_manifest(ws.artefacts("sentiment")[name]).digest for name in SAME} for ws in (first, second)]
    assert digests[0] == digests[1]
    coefficients = [(ws.candidate("sentiment") / "coefficients.json").read_bytes() for ws in (first, second)]
    assert coefficients[0] == coefficients[1]
    assert status(second.root)["sentiment"]["outcome"] == status(built)["sentiment"]["outcome"] == "pass"


def test_its_ledger_names_the_publisher_and_nothing_is_left_to_do(second: Workspace, prefect_api: str) -> None:
    key = str(second.params.family.publisher)
    assert f"key {key}: published the safety vector of 1 release;" in run(second.root, "audit", "verify").stdout
    assert json.loads(run(second.root, "audit", "show", "sentiment", "--json").stdout)["vector"]["publisher"]["key"]
    assert git(second.root, "status", "--porcelain") == ""
    assert dvc(second.root, "status", "--json") == "{}"
    again = run(second.root, "run", PREFECT_API_URL=prefect_api).stderr
    assert "fetch-vector" in again
    assert again.count("unchanged") == 7
