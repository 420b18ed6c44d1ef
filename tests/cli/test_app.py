"""The command line: what it imports, what it refuses, and its exit codes."""

import io
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

from safegene.cli.app import app
from safegene.cli.console import complete_target, table
from safegene.cli.workspace import exit_code
from safegene.errors import SafegeneError
from safegene.pipeline.table import PIPELINE
from tests.factories.commands import call, git, run

ROOT = Path(__file__).parents[2]
CHANGING = {
    *("init", "demo", "promote", "approve", "reject", "rollback", "merge", "export", "report", "watch", "deploy"),
    *("site build", "site serve"),
    *("target add", "target remove", "data add", "data split", "suite add", "suite use"),
    *("judge calibrate", "judge sample", "tiny build", "vector publish"),
    *("keys create", "keys pin", "keys rotate", "keys require", "keys revoke", "audit revoke", "audit pack"),
    *("resolve", "keys show", "data schema"),  # print JSON always
    *(f"audit export {form}" for form in ("openlineage", "cyclonedx", "model-card", "gto", "mlflow")),
}
HEAVY = ("torch", "transformers", "peft", "great_expectations", "prefect", "dvc", "boto3", "matplotlib", "scipy")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "ws"
    run(folder.parent, "init", str(folder))
    return folder


@pytest.fixture
def workspace(empty: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(empty, tmp_path / "ws", symlinks=True)
    return tmp_path / "ws"


def imported_by(*command: str, cwd: Path) -> set[str]:
    """Heavy libraries that a command imports in a process of its own; the command must succeed."""
    code = (
        "import sys, atexit\n"
        f"heavy = {HEAVY}\n"
        "atexit.register(lambda: print('IMPORTED', *[m for m in heavy if m in sys.modules], file=sys.stderr))\n"
        f"sys.argv = ['safegene', *{list(command)}]\n"
        "from safegene.cli.app import main\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True)
    line = next(line for line in done.stderr.splitlines() if line.startswith("IMPORTED"))
    return set(line.split()[1:])


@pytest.mark.parametrize("command", [("--help",), ("run", "--help"), ("--version",), ("target", "list")])
def test_light_commands_import_nothing_heavy(empty: Path, command: tuple[str, ...]) -> None:
    assert imported_by(*command, cwd=empty) == set()


@pytest.mark.parametrize("command", [("status",), ("audit", "verify"), ("audit", "history", "topic")])
def test_reading_commands_import_no_models(empty: Path, command: tuple[str, ...]) -> None:
    assert imported_by(*command, cwd=empty).isdisjoint({"torch", "transformers", "great_expectations", "prefect"})


@pytest.mark.parametrize("option", ["--license", "--licence"])
def test_the_licence_is_named(tmp_path: Path, option: str) -> None:
    said = call(tmp_path, option).stdout
    assert "Apache-2.0" in said
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"] in said


def test_the_shell_completes_commands_options_and_targets(workspace: Path) -> None:
    assert "_SAFEGENE_COMPLETE=complete_bash" in call(workspace, "--show-completion", "bash").stdout
    targets = workspace / "data" / "targets.yaml"
    entry = "{source: 'tiny://topic?seed=0', task: topic, fingerprint: x}"
    targets.write_text(f"targets: {{support: {entry}, sales: {entry}}}\n")
    with chdir(workspace):
        assert complete_target("su") == ["support"]
        assert complete_target("s") == ["support", "sales"]
        targets.write_text("nonsense: [")
        assert complete_target("s") == []


@pytest.mark.parametrize("width", [30, 80])
def test_tables_fold_and_never_cut_a_name(width: int) -> None:
    drawn, name = table("target", "source", "task"), "support-bot-of-the-northern-region"
    drawn.add_row(name, "s3://models/support-bot/v7", "support")
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(drawn)
    text = console.export_text()
    assert "\u2026" not in text
    assert name in "".join(line[: text.index("source")].strip() for line in text.splitlines())


def test_init_makes_a_clean_git_and_dvc_repository(empty: Path) -> None:
    assert git(empty, "status", "--porcelain") == ""
    assert git(empty, "ls-files", "ledger.pub") == "ledger.pub"
    config = (empty / ".dvc" / "config").read_text()
    assert "verify = True" in config
    assert str(empty) not in config, "the remote's place must travel with the repository"


def test_init_refuses_a_folder_with_files(empty: Path) -> None:
    before = sorted(p.name for p in empty.iterdir())
    assert "files in it" in run(empty, "init", str(empty), code=2).stderr
    assert sorted(p.name for p in empty.iterdir()) == before


@pytest.mark.parametrize("wrong", ["absent", "broken", "a file"])
def test_an_init_that_cannot_work_leaves_nothing_behind(tmp_path: Path, wrong: str) -> None:
    params, folder = tmp_path / "params.yaml", tmp_path / "ws"
    if wrong == "broken":
        params.write_text("family: {aligned: nonsense}")
    if wrong == "a file":
        folder.write_text("mine")
    more = [] if wrong == "a file" else ["--params", str(params)]
    done = run(tmp_path, "init", str(folder), *more, code=2)
    assert "expected" in done.stderr
    assert "Traceback" not in done.stderr
    assert folder.exists() == (wrong == "a file")


@pytest.mark.parametrize("name", ["SAFEGENE_LOG", "SAFEGENE_CACHE"])
def test_settings_that_cannot_be_are_named(empty: Path, name: str) -> None:
    value = {"SAFEGENE_LOG": "verbose", "SAFEGENE_CACHE": str(empty / "params.yaml" / "x")}[name]
    done = run(empty, "tiny", "build", "aligned", code=2, **{name: value})
    assert name in done.stderr
    assert "Traceback" not in done.stderr


def test_private_keys_stay_outside_the_workspace(empty: Path) -> None:
    keys = Path(os.environ["SAFEGENE_KEYS"])
    private = [p for p in keys.iterdir() if p.is_file()]
    assert private
    for path in private:
        assert path.stat().st_mode & 0o077 == 0
        assert not any(path.read_bytes() == p.read_bytes() for p in empty.rglob("*") if p.is_file())


def test_init_on_s3_names_remote_and_ledger(tmp_path: Path) -> None:
    run(tmp_path, "init", "ws", "--remote", "s3://bucket/dvc", "--ledger", "s3://bucket/ledger")
    assert "url = s3://bucket/dvc" in (tmp_path / "ws/.dvc/config").read_text()
    assert "ledger: s3://bucket/ledger" in (tmp_path / "ws/params.yaml").read_text()


def test_outside_a_workspace_there_is_a_remedy(tmp_path: Path) -> None:
    done = run(tmp_path, "status", code=2)
    assert "safegene init" in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_the_trace(tmp_path: Path) -> None:
    assert "Traceback" in run(tmp_path, "--debug", "status", code=2).stderr


def test_targets_are_added_pinned_listed_and_removed(workspace: Path) -> None:
    run(workspace, "target", "add", "a", "tiny://topic?seed=0", "--task", "topic")
    assert "fingerprint: " in (workspace / "data/targets.yaml").read_text()
    assert "tiny://topic" in run(workspace, "target", "list").stdout
    run(workspace, "target", "remove", "a")
    assert "tiny://topic" not in run(workspace, "target", "list").stdout
    assert "'a'" in run(workspace, "target", "remove", "a", code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("b", "tiny://topic?seed=0", "--task", "nothing"), 2, "nothing"),
        (("B", "tiny://topic?seed=0", "--task", "topic"), 2, "B"),
        (("b", "ftp://somewhere", "--task", "topic"), 1, "ftp://somewhere"),
        (("b", "file:///no/such/folder", "--task", "topic"), 1, "/no/such/folder"),
    ],
)
def test_wrong_targets_are_refused_and_nothing_is_written(
    empty: Path, arguments: tuple[str, ...], code: int, word: str
) -> None:
    before = (empty / "data/targets.yaml").read_bytes()
    done = run(empty, "target", "add", *arguments, code=code)
    assert word in done.stderr
    assert (empty / "data/targets.yaml").read_bytes() == before


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        elif not command.hidden:
            yield (*path, name), command


def test_every_command_that_only_reads_has_json() -> None:
    """A command without it changes something, has no end, prints JSON always, or writes another format."""
    without = {
        " ".join(path)
        for path, command in commands(typer.main.get_command(app))
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    stages = {stage.name for stage in PIPELINE if stage.tracked} - {"gate"}
    assert without - stages <= CHANGING


def test_what_json_shows_is_one_object_per_command(empty: Path) -> None:
    for line in (
        "status",
        "target list",
        "audit verify",
        "audit history x",
        "keys list",
        "suite list",
        "suite formats",
    ):
        content = json.loads(call(empty, *line.split(), "--json").stdout)
        assert isinstance(content, dict), line


def test_status_of_an_empty_workspace_is_valid_json(empty: Path) -> None:
    assert json.loads(run(empty, "status", "--json").stdout) == {"targets": []}


def test_an_audit_of_nothing_does_not_claim_to_have_verified_it(empty: Path) -> None:
    assert "nothing on record" in run(empty, "audit", "verify").stdout


def test_promote_without_a_verdict_is_an_error_on_record(workspace: Path) -> None:
    run(workspace, "target", "add", "c", "tiny://topic?seed=0", "--task", "topic")
    done = run(workspace, "promote", "c", code=1)
    assert "ArtifactError" in done.stderr
    assert "error" in run(workspace, "audit", "history", "c").stdout


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        (set(), 0),
        ({"pass"}, 0),
        ({"pass", "fail"}, 3),
        ({"pass", "inconclusive"}, 4),
        ({"fail", "inconclusive"}, 3),
        ({"error", "fail", "inconclusive"}, 1),
        ({"pass", "unheard-of"}, 1),
    ],
)
def test_the_worst_outcome_of_a_run_gives_its_exit_code(outcomes: set[str], code: int) -> None:
    assert exit_code(outcomes) == code


def test_the_exit_code_of_an_error_is_1_2_or_3() -> None:
    kinds = [SafegeneError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert {kind.exit_code for kind in kinds} == {1, 2, 3}
