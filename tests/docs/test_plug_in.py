"""The package of the plug-in page, installed as its reader would, adds a judge without a change of safegene."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

USE = """
from safegene.evaluation.judges import build
from safegene.workspace.params import JudgeParams

judge = build(JudgeParams(kind="length"))
print(judge.identity, judge.judge(["a"], ["I cannot help with that."])[0].refusal)
"""


def test_an_installed_package_adds_a_judge(tmp_path: Path, blocks: list[Any]) -> None:
    page = [block for block in blocks if block.page.name == "plug-in.md"]
    source, site = tmp_path / "safegene-length-judge", tmp_path / "site"
    source.mkdir()
    project = next(block.text for block in page if block.language == "toml")
    module = next(block.text for block in page if block.language == "python")
    (source / "pyproject.toml").write_text(project, encoding="utf-8")
    (source / "length_judge.py").write_text(module, encoding="utf-8")
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(site)]
    run([sys.executable, "-m", "pip", "install", *flags, str(source)])
    identity, refusal = run([sys.executable, "-c", USE], PYTHONPATH=str(site)).split()
    assert identity.startswith("sha256:")
    assert refusal == "yes"


def run(command: list[str], **variables: str) -> str:
    environment = {**os.environ, **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
