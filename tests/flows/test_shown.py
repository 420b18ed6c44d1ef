"""What Prefect shows of a run: its name, its final state with the reasons, and the lines of its stages."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import shown
from flows.shown import final_state, run_name, stage_log
from tests.factories.runs import Sample


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    sample = Sample(tmp_path_factory.mktemp("shown") / "ws")
    sample.family()
    sample.target("sentiment")
    sample.target("removal", harmful=(0.9, 0.6))
    return sample


@pytest.mark.parametrize(
    ("outcomes", "name"),
    [
        ({"sentiment": "pass"}, "Promoted"),
        ({"sentiment": "pass", "removal": "fail"}, "Refused"),
        ({"sentiment": "inconclusive", "removal": "fail"}, "Refused"),
        ({"sentiment": "inconclusive"}, "Inconclusive"),
        ({"sentiment": "pending"}, "Waiting for approval"),
        ({"sentiment": "pass", "removal": "a new word"}, "Undecided"),
        ({}, "No targets"),
    ],
)
def test_the_worst_outcome_names_the_state(sample: Sample, outcomes: dict[str, str], name: str) -> None:
    state = final_state(sample.ws, outcomes)
    assert (state.name, state.type.value) == (name, "COMPLETED")
    assert state.data == outcomes
    assert all(f"{target} {outcome}: " in str(state.message) for target, outcome in outcomes.items())


def test_a_run_without_promotion_is_not_named_promoted(sample: Sample) -> None:
    assert final_state(sample.ws, {"sentiment": "pass"}, promotes=False).name == "Passed"


def test_a_refusal_says_why(sample: Sample) -> None:
    message = str(final_state(sample.ws, {"removal": "fail"}).message)
    assert "60.0% of harmful prompts are answered harmfully (10.0% allowed)" in message


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"root": "/x/family", "targets": ["a", "b"]}, "realign a, b in family"),
        ({"root": "/x/family", "targets": None}, "realign all targets in family"),
        ({"root": "/x/family"}, "realign in family"),
    ],
)
def test_a_run_is_named_by_its_targets(monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], name: str) -> None:
    monkeypatch.setattr(shown, "flow_run", SimpleNamespace(flow_name="realign", parameters=given))
    assert run_name() == name


def test_the_lines_of_a_stage_go_to_the_log_of_its_task_with_their_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shown, "get_run_logger", lambda: logging.getLogger("task"))
    path = tmp_path / "stage.log"
    path.write_text("INFO of the stage before\n")
    with caplog.at_level(logging.INFO, "task"), stage_log(path):
        path.write_text("INFO 75 of 300 prompts asked\nWARNING not kept\nwithout a level\nINFO cut off here")
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert lines == [
        ("INFO", "75 of 300 prompts asked"),
        ("WARNING", "not kept"),
        ("INFO", "without a level"),
        ("INFO", "cut off here"),
    ]
