"""The wheel, installed in an environment elsewhere that has no checkout: commands, API, a plug-in package.

tests/slow/test_demo.py runs the demo from one.
"""

import json
import zipfile
from pathlib import Path

import pytest

import safegene
from tests.factories.installation import Installation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
MODULE = """
import os
from pathlib import Path

from safegene.checkpoints.sources.local import FolderSource
from safegene.checkpoints.sources.uri import Scheme, SourceURI
from safegene.evaluation.judges.base import Judge, JudgeDecision
from safegene.workspace.digest import digest_json


class PolitenessJudge(Judge):
    identity = digest_json({"judge": "politeness", "version": 1})

    def judge(self, prompts, replies):
        return [JudgeDecision(*(("no", "yes") if "sorry" in reply else ("yes", "no"))) for reply in replies]


def build(params):
    return PolitenessJudge()


def parse(uri, rest):
    return SourceURI(uri, "shelf", rest) if rest else None


SCHEME = Scheme("shelf://NAME", parse, lambda place: FolderSource(Path(os.environ["SHELF"]) / place.path))
"""
PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "safegene-shelf"
version = "1"

[project.entry-points."safegene.judges"]
politeness = "safegene_shelf:build"

[project.entry-points."safegene.sources"]
shelf = "safegene_shelf:SCHEME"

[tool.hatch.build]
include = ["safegene_shelf.py"]
"""


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="module")
def wheel(box: Installation) -> Path:
    return box.build(ROOT)


@pytest.fixture(scope="module")
def installed(box: Installation, wheel: Path) -> Installation:
    box.install(wheel)
    return box


@pytest.fixture
def workspace(installed: Installation, tmp_path: Path) -> Path:
    installed.safegene("init", str(tmp_path / "ws"))
    return tmp_path / "ws"


def test_the_wheel_carries_the_template_the_flows_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    expected = {
        "safegene/py.typed",
        "safegene/report/page.css",
        "safegene/report/index.html.j2",
        "safegene/tiny/seed0/aligned/model.safetensors",
        "safegene/template/dvc.yaml",
        "safegene/template/params.yaml",
        "safegene/template/data/targets.yaml",
        "safegene/template/data/prompts/gate.jsonl",
        "safegene/template/data/tasks/sentiment.jsonl",
        "safegene/template/data/judges/README.md",
        "flows/realign.py",
    }
    assert expected <= set(names)
    top = {name.split("/")[0] for name in names}
    assert top == {"safegene", "flows", f"safegene-{safegene.__version__}.dist-info"}
    assert not [name for name in names if "test" in name.lower() or name.endswith(".pyc")]


def test_every_public_name_is_imported_from_the_wheel(installed: Installation) -> None:
    place, names = installed.python(
        "import json, safegene; print(json.dumps([safegene.__file__, "
        "{name: getattr(safegene, name) is not None for name in safegene.__all__}]))"
    )
    assert Path(place).is_relative_to(installed.folder)
    assert names == dict.fromkeys(safegene.__all__, True)


def test_a_new_workspace_is_valid(installed: Installation, workspace: Path) -> None:
    installed.safegene("validate", cwd=workspace)
    assert (workspace / "data/validation/receipt.json").is_file()
    assert json.loads(installed.safegene("status", "--json", cwd=workspace)) == {"targets": []}


def test_a_plug_in_package_adds_a_judge_and_a_source(installed: Installation, workspace: Path) -> None:
    source = installed.folder / "plug-in"
    source.mkdir()
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "safegene_shelf.py").write_text(MODULE)
    installed.install(installed.build(source))
    models = Path(installed.safegene("tiny", "build", "sentiment").strip()).parent
    shelf = {"SHELF": str(models)}
    installed.safegene("target", "add", "mine", "shelf://sentiment", "--task", "sentiment", cwd=workspace, **shelf)
    installed.safegene("fetch", cwd=workspace)
    installed.safegene("fetch-target", "mine", cwd=workspace, **shelf)
    record = json.loads((workspace / "data/targets/mine/checkpoint/checkpoint.json").read_text())
    assert record["source"] == "shelf://sentiment"

    params = workspace / "params.yaml"
    params.write_text(
        params.read_text().replace("{kind: grammar}", "{kind: politeness, calibration: data/judges/politeness.json}")
    )
    rows = [{"prompt": "p", "reply": "sorry", "refusal": True}, {"prompt": "p", "reply": "sure", "refusal": False}]
    (workspace / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    measured = installed.safegene("judge", "calibrate", "labels.jsonl", "--what", "two replies", cwd=workspace)
    assert "data/judges" in measured
