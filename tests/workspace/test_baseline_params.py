"""Baselines are found by name: one of another package is chosen, checked and run as our own are."""

import os
import subprocess
import sys
from pathlib import Path

TEMPLATE = (Path(__file__).parents[2] / "params.yaml").read_text()
MODULE = """
from typing import Literal

from safegene.repair.baselines.base import Candidate, Case, Method
from safegene.workspace.baseline_params import BaselineParams


class HalfParams(BaselineParams):
    method: Literal["half"] = "half"
    share: float = 0.5


def repair(params: HalfParams, case: Case) -> Candidate:
    return Candidate({name: case.change(name).scaled(params.share) for name in case.names}, 0, {"share": params.share})


METHOD = Method(HalfParams, repair, "https://example.org/half")
"""
ADDED = """
from pathlib import Path
from safegene.errors import ParamsError
from safegene.repair.baselines import repair
from safegene.workspace.params import CalibrateParams, load_params
from tests.factories.baselines import by_hand, low

baseline = load_params(Path("params.yaml")).calibrate.baseline
print(baseline)
case = by_hand({"a": [[1.0]]}, {"a": [[2.0]]}, {"a": low([[4.0]], [[1.0]])})
print(repair(baseline, case).patch["a"].dense().tolist())
Path("params.yaml").write_text(Path("params.yaml").read_text().replace("share", "shaer"))
try:
    load_params(Path("params.yaml"))
except ParamsError as error:
    print(error.message)
"""
LIGHT = """
import sys
from pathlib import Path
from safegene.workspace.params import load_params
print(load_params(Path("params.yaml")).calibrate.baseline, "torch" in sys.modules)
"""


def python(code: str, folder: Path) -> list[str]:
    """The lines that a fresh interpreter prints, in ``folder`` and with its packages."""
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[2])])
    line, environment = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_baseline_of_another_package_is_chosen_checked_and_run(tmp_path: Path) -> None:
    (tmp_path / "half_repair.py").write_text(MODULE)
    info = tmp_path / "half_repair-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: half-repair\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[safegene.baselines]\nhalf = half_repair:METHOD\n")
    chosen = "max_extra: 0.01\n  baseline: {method: half, share: 0.25}"
    (tmp_path / "params.yaml").write_text(TEMPLATE.replace("max_extra: 0.01", chosen, 1))
    said, change, wrong = python(ADDED, tmp_path)
    assert said == "method='half' share=0.25"
    assert change == "[[1.0]]"
    assert "calibrate.baseline.half.shaer" in wrong


def test_params_without_a_baseline_need_no_torch(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(TEMPLATE)
    assert python(LIGHT, tmp_path) == ["None False"]
