"""An error keeps its class, message, remedy and exit code when the stage runs as a child process."""

from pathlib import Path

import pytest
from prefect.states import Failed

from safegene import errors
from safegene.errors import DigestMismatch, FormatError, PromotionRefused, SafegeneError, SourceError
from safegene.pipeline.process import ERROR_FILE, read_error, report_error
from safegene.pipeline.runner import reproduce
from safegene.pipeline.table import stage_named
from safegene.workspace.layout import Workspace
from tests.factories.commands import run

TREE = sorted(name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, SafegeneError))


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The error file that `report_error` writes."""
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "error.json"))
    return tmp_path / "error.json"


@pytest.mark.parametrize("name", TREE)
def test_every_class_survives(left: Path, name: str) -> None:
    error = getattr(errors, name)("expected a, got [b], in c", remedy="do d")
    error.exit_code = 4
    report_error(error, trace=False)
    rebuilt = read_error(left, "gate@x")
    assert rebuilt is not None
    assert type(rebuilt) is type(error)
    assert (rebuilt.message, rebuilt.remedy, rebuilt.exit_code) == (error.message, error.remedy, 4)
    assert rebuilt.summary == f"stage gate@x: {name}: expected a, got [b], in c"


def test_an_unknown_class_is_named_in_the_message(left: Path) -> None:
    class PluginError(SourceError):
        """An error of a plug-in."""

    report_error(PluginError("expected a", remedy="do d"), trace=False)
    rebuilt = read_error(left, "fetch")
    assert type(rebuilt) is SafegeneError
    assert (rebuilt.message, rebuilt.remedy) == ("PluginError: expected a", "do d")


@pytest.mark.parametrize("name", ["Path", "annotations", "__name__"])
def test_a_name_that_is_no_error_of_the_tree_is_not_called(left: Path, name: str) -> None:
    left.write_text(f'{{"error": "{name}", "message": "m", "remedy": "", "exit_code": 1}}')
    rebuilt = read_error(left, "fetch")
    assert rebuilt is not None
    assert rebuilt.message == f"{name}: m"


def test_no_file_is_no_error_and_another_form_is_one(left: Path) -> None:
    assert read_error(left, "fetch") is None
    left.write_text("{}")
    with pytest.raises(FormatError, match="expected a ErrorFile"):
        read_error(left, "fetch")


def test_a_stage_that_dvc_starts_keeps_its_error(tmp_path: Path) -> None:
    run(tmp_path, "init", "ws")
    ws = Workspace(tmp_path / "ws")
    params = ws.root / "params.yaml"
    lines = params.read_text().splitlines(keepends=True)
    absent = "file:///no/such/folder"
    params.write_text("".join(f"  aligned: {absent}\n" if "  aligned:" in line else line for line in lines))
    with pytest.raises(SourceError) as caught:
        reproduce(stage_named("fetch"), ws)
    assert caught.value.message.startswith("expected")
    assert "/no/such/folder" in caught.value.message
    assert (caught.value.stage, caught.value.exit_code) == ("fetch", 1)


def test_only_a_failed_source_is_retried() -> None:
    from flows.tasks import STAGE_TASKS

    retried = STAGE_TASKS["fetch"].retry_condition_fn
    assert retried is not None
    for error, expected in (
        (SourceError("m"), True),
        (DigestMismatch("expected what the SourceError says"), False),
        (PromotionRefused("SourceError"), False),
        (ValueError("SourceError"), False),
    ):
        assert retried(STAGE_TASKS["fetch"], None, Failed(data=error)) is expected  # type: ignore[arg-type]
    assert STAGE_TASKS["gate"].retry_condition_fn is None
