"""Standard streams that are closed, full or go away, and settings that cannot be: one sentence, no trace."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.factories.commands import BIN, run


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams") / "ws"
    run(folder.parent, "init", str(folder))
    return folder


def shell(ws: Path, line: str) -> subprocess.CompletedProcess[str]:
    """A line of sh, in which ``$S`` is the command."""
    env = {**os.environ, "S": str(BIN / "safegene")}
    return subprocess.run(["sh", "-c", line], cwd=ws, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", ["status --json", "--help", "target list"])
def test_closed_streams_are_like_the_null_device(ws: Path, command: str) -> None:
    done = shell(ws, f"$S {command} >&-")
    assert (done.returncode, done.stderr) == (0, "")
    assert shell(ws, f"$S {command} <&- >&- 2>&-").returncode == 0


def test_a_file_never_takes_the_number_of_a_closed_stream(ws: Path) -> None:
    code = (
        "from safegene.pipeline.process import open_standard_streams; open_standard_streams(); "
        "file = open('third', 'w'); print('not for the file', flush=True); assert file.fileno() > 2"
    )
    assert shell(ws, f'{BIN}/python -c "{code}" >&-').returncode == 0
    assert (ws / "third").read_text() == ""
    (ws / "third").unlink()


@pytest.mark.parametrize("command", ["status --json", "--help"])
def test_an_output_that_is_full_is_one_sentence(ws: Path, command: str) -> None:
    done = shell(ws, f"$S {command} >/dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith("error SafegeneError: expected room to write")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["--help", "audit verify"])
def test_a_reader_that_goes_away_ends_the_command_quietly(ws: Path, command: str) -> None:
    assert shell(ws, f"$S {command} | true").stderr == ""


def test_text_that_the_terminal_cannot_show_is_escaped(ws: Path) -> None:
    done = shell(
        ws, "LC_ALL=C PYTHONUTF8=0 PYTHONIOENCODING=ascii $S target add x 'file:///nö-\\033[31m' --task sentiment"
    )
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert "\033[31m" not in done.stderr
    done = shell(ws, "$S target add x \"$(printf 'file:///a\\377b')\" --task sentiment")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [("keys", "list"), ("keys", "create"), ("promote", "sentiment")])
def test_a_file_in_place_of_the_folder_of_keys_is_named(ws: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("")
    done = run(ws, *command, code=(1, 2), SAFEGENE_KEYS=str(tmp_path / "file"))
    if command[0] == "keys":
        assert "got a file" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "address"),
    [
        ("run", "http://user:canary-pass@127.0.0.1:9/api"),
        ("watch", "nonsense"),
        ("deploy", "http://127.0.0.1:9/api"),
    ],
)
def test_a_prefect_server_that_is_not_there_is_one_sentence(ws: Path, command: str, address: str) -> None:
    done = run(ws, command, code=1, PREFECT_API_URL=address)
    assert "expected the Prefect server of PREFECT_API_URL" in done.stderr
    assert "unset PREFECT_API_URL" in done.stderr
    assert "Traceback" not in done.stderr
    assert "canary-pass" not in done.stdout + done.stderr


def test_an_error_that_nobody_expected_is_one_sentence_and_a_trace_on_request(ws: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from safegene.cli import app, workspace; "
        "workspace.Workspace.find = classmethod(lambda cls: 1 / 0); app.main()"
    )
    for debug in ("", "--debug "):
        done = shell(ws, f'{BIN}/python -c "{code}" {debug}report')
        assert done.returncode == 1
        assert "error SafegeneError: expected no ZeroDivisionError, got: division by zero" in done.stderr
        assert ("Traceback" in done.stderr) == bool(debug)


def test_a_lone_surrogate_in_a_prompt_or_in_parameters_is_one_sentence(ws: Path) -> None:
    gate, params = ws / "data" / "prompts" / "gate.jsonl", ws / "params.yaml"
    for path, old, new in ((gate, b'"prompt":"', b'"prompt":"\\ud800'), (params, b'"0 3 * * *"', b'"\\ud800"')):
        before = path.read_bytes()
        assert old in before, path
        path.write_bytes(before.replace(old, new, 1))
        done = run(ws, "validate", code=(1, 2))
        path.write_bytes(before)
        assert "lone surrogate" in done.stderr
        assert path.name in done.stderr
        assert "Traceback" not in done.stderr
