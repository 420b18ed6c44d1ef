"""The files of ``deploy/`` follow their schemas, and no input of a workflow becomes part of a script."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from safegene.workspace.plain_yaml import load_yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
SCHEMAS = {
    "github/action.yml": "vendor.github-actions",
    "github/workflow.yml": "vendor.github-workflows",
    "gitlab/safegene.gitlab-ci.yml": "vendor.gitlab-ci",
    "compose.yaml": "vendor.compose-spec",
}


def check(path: Path, schema: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "check-jsonschema"), "--builtin-schema", schema, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_file_has_a_schema() -> None:
    assert {str(path.relative_to(DEPLOY)) for path in DEPLOY.rglob("*") if path.is_file()} == {*SCHEMAS}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_file_follows_its_schema(name: str) -> None:
    done = check(DEPLOY / name, SCHEMAS[name])
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_file_that_does_not_follow_its_schema_is_found(tmp_path: Path) -> None:
    wrong = tmp_path / "action.yml"
    wrong.write_text((DEPLOY / "github/action.yml").read_text().replace("using: composite", "using: nothing"))
    assert check(wrong, SCHEMAS["github/action.yml"]).returncode == 1


def steps() -> list[dict[str, Any]]:
    read: dict[str, Any] = load_yaml(DEPLOY / "github/action.yml")
    found: list[dict[str, Any]] = read["runs"]["steps"]
    return found


def test_no_input_is_part_of_a_script() -> None:
    scripts = [step["run"] for step in steps() if "run" in step]
    assert len(scripts) == 5
    assert all("${{" not in script for script in scripts)


def test_strangers_changes_do_not_run_with_secrets() -> None:
    workflow = load_yaml(DEPLOY / "github/workflow.yml")
    triggers = workflow[True] if True in workflow else workflow["on"]  # YAML 1.1 reads `on` as true
    assert [*triggers] == ["pull_request"]
    assert workflow["permissions"] == {"contents": "read", "pull-requests": "write"}
