"""A discovery whose run failed, or was lost, is announced again, and not for ever."""

import json
from pathlib import Path

import pytest

from flows.announcements import TRIES, note_announcement, to_announce_again
from safegene.errors import JudgeError
from safegene.pipeline.stages.promote import record_error
from safegene.workspace.layout import Workspace
from safegene.workspace.params import Targets
from tests.factories.ledger import TARGET, attempt, make_workspace


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path / "ws")


def announce(ws: Workspace) -> None:
    note_announcement(ws, TARGET, ws.targets.targets[TARGET].fingerprint)


def fail(ws: Workspace, why: str) -> None:
    record_error(ws, TARGET, JudgeError(f"expected an answer, got {why}"))


def test_what_failed_is_announced_again_until_it_is_decided(ws: Workspace) -> None:
    announce(ws)
    assert to_announce_again(ws, ws.targets) == [], "its run has not ended"
    fail(ws, "none")
    assert to_announce_again(ws, ws.targets) == [TARGET]
    announce(ws)
    assert to_announce_again(ws, ws.targets) == []
    attempt(ws, outcome="fail")
    assert to_announce_again(ws, ws.targets) == [], "a refusal is a decision"
    fail(ws, "none later")
    assert to_announce_again(ws, ws.targets) == []


def test_what_fails_again_and_again_is_left_to_people(ws: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(TRIES):
        announce(ws)
        fail(ws, f"error {number}")
    assert to_announce_again(ws, ws.targets) == []
    assert f"next: safegene run {TARGET}" in capsys.readouterr().err


@pytest.mark.parametrize("hours", [0.5, 2.0])
def test_an_announcement_that_led_to_no_record_is_lost_after_an_hour(ws: Workspace, hours: float) -> None:
    announce(ws)
    path = ws.root / ".safegene" / "announced.json"
    noted = json.loads(path.read_text())
    noted["targets"][TARGET]["seconds"] -= hours * 3600
    path.write_text(json.dumps(noted))
    assert to_announce_again(ws, ws.targets) == ([TARGET] if hours > 1 else [])


def test_a_target_that_is_gone_or_has_changed_is_forgotten(ws: Workspace) -> None:
    announce(ws)
    fail(ws, "none")
    assert to_announce_again(ws, Targets()) == []
    assert to_announce_again(ws, ws.targets) == []
