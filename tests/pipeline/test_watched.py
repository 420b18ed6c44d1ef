"""What the watch found is announced once, again where its run failed or fell silent, and not for ever."""

from pathlib import Path

import pytest

from safegene.errors import StoreError
from safegene.ledger.store import LocalStore
from safegene.pipeline import watched
from safegene.pipeline.watched import TRIES, Discovery, following, read_discoveries, to_announce
from safegene.workspace.layout import Workspace
from safegene.workspace.params import Targets, save_targets
from tests.factories.ledger import TARGET, attempt, copy_workspace, make_workspace


class Clock:
    """A clock that a test sets forward."""

    def __init__(self) -> None:
        self.seconds = 1e9

    def time(self) -> float:
        return self.seconds


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("watched") / "ws")


@pytest.fixture
def ws(made: Workspace, tmp_path: Path) -> Workspace:
    return copy_workspace(made, tmp_path / "ws")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.time", clock.time)
    return clock


def look(ws: Workspace, before: Targets | None = None) -> dict[str, Discovery]:
    return to_announce(ws, Targets() if before is None else before, ws.targets)


def row(ws: Workspace) -> Discovery:
    return read_discoveries(ws, TARGET)[-1]


def change(ws: Workspace, content: str) -> Targets:
    """Another content of the target; the targets before."""
    before = ws.targets
    entry = before.targets[TARGET].model_copy(update={"fingerprint": content})
    save_targets(ws.targets_file, before.model_copy(update={"targets": {TARGET: entry}}))
    return before


def run(ws: Workspace, outcome: str, *, event: str = "", name: str = "run") -> str:
    """What the flow does of a target with that outcome; why it did nothing, or ""."""
    with following(ws, TARGET, name, event) as followed:
        if not followed.refused:
            followed.outcome, followed.why = outcome, "it had to"
    return followed.refused


def test_a_content_is_announced_once_and_its_event_runs_once(ws: Workspace) -> None:
    (found,) = look(ws).values()
    assert (found.state, found.tries) == ("announced", 1)
    assert look(ws, ws.targets) == {}
    assert look(ws) == {}, "another clone, whose targets.yaml does not name it yet"
    refusals = [run(ws, "pass", event=found.work) for _ in range(100)]
    assert refusals[0] == ""
    assert {why.startswith("decided already") for why in refusals[1:]} == {True}
    assert row(ws).state == "decided"
    assert look(ws, ws.targets) == {}


def test_an_event_starts_nothing_while_a_run_works_on_it(ws: Workspace) -> None:
    (found,) = look(ws).values()
    with following(ws, TARGET, "first", found.work) as first:
        assert run(ws, "pass", event=found.work, name="second").startswith("run first works on it")
        first.outcome = "fail"
    assert (row(ws).state, row(ws).run) == ("decided", "first")


def test_the_newest_content_wins_and_the_one_before_is_a_row(ws: Workspace) -> None:
    (old,) = look(ws).values()
    before = change(ws, "newer")
    (new,) = look(ws, before).values()
    first, second = read_discoveries(ws, TARGET)
    assert (first.work, first.state, first.why) == (old.work, "superseded", "superseded by newer")
    assert (second.work, second.state) == (new.work, "announced")
    assert run(ws, "pass", event=old.work) == "superseded by newer"
    save_targets(ws.targets_file, before)
    assert look(ws, before) == {}, "a clone that lags behind announces nothing old"
    assert read_discoveries(ws, TARGET)[-1].work == new.work


def test_a_content_that_comes_back_is_announced_again(ws: Workspace) -> None:
    first = ws.targets
    look(ws)
    before = change(ws, "newer")
    look(ws, before)
    newer = ws.targets
    save_targets(ws.targets_file, first)
    assert set(look(ws, newer)) == {TARGET}


def test_what_failed_is_announced_after_growing_pauses_and_then_left_to_people(ws: Workspace, clock: Clock) -> None:
    (found,) = look(ws).values()
    pauses = []
    for tries in range(1, TRIES + 1):
        assert run(ws, "error", event=found.work) == ""
        assert (row(ws).state, row(ws).tries, row(ws).why) == ("failed", tries, "it had to")
        assert run(ws, "pass", event=found.work).startswith(f"try {tries} of 5 failed (it had to)")
        start = clock.seconds
        while tries < TRIES and not look(ws, ws.targets):
            clock.seconds += 60
        pauses.append(clock.seconds - start)
    assert pauses[:-1] == [watched.PAUSE_SECONDS * 2**n for n in range(TRIES - 1)]
    clock.seconds += 1e6
    assert look(ws, ws.targets) == {}
    assert row(ws).given_up == "5 tries failed (it had to)"


def test_a_run_that_falls_silent_for_several_signs_of_life_is_tried_again(ws: Workspace, clock: Clock) -> None:
    (found,) = look(ws).values()
    killed = following(ws, TARGET, "killed", found.work)
    killed.__enter__()  # its process is killed: the block never ends
    clock.seconds += 3 * watched.BEAT_SECONDS
    assert look(ws, ws.targets) == {}
    assert row(ws).state == "running", "three missed signs of life are too few"
    clock.seconds += 2 * watched.BEAT_SECONDS
    assert set(look(ws, ws.targets)) == {TARGET}
    assert (row(ws).state, row(ws).tries, "no sign of life" in row(ws).why) == ("announced", 2, True)
    assert run(ws, "pass", event=found.work, name="next") == ""
    killed.__exit__(None, None, None)  # it was stopped, not killed, and wakes up
    assert (row(ws).state, row(ws).run) == ("decided", "next")


def test_signs_of_life_keep_a_long_run_its_work(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "BEAT_SECONDS", 0.01)
    (found,) = look(ws).values()
    with following(ws, TARGET, "long", found.work) as followed:
        first = row(ws).since
        while row(ws).since == first:
            pass
        followed.outcome = "pass"


def test_a_run_by_hand_decides_what_was_found(ws: Workspace) -> None:
    (found,) = look(ws).values()
    attempt(ws, outcome="fail")
    assert run(ws, "fail") == ""
    assert (row(ws).state, row(ws).record) == ("decided", 0)
    assert run(ws, "pass", event=found.work) == "decided already, by record 0"


def test_a_record_of_an_earlier_content_decides_nothing(ws: Workspace) -> None:
    """The run of a superseded content ends, and a rollback is recorded, while the newer one waits for its run."""
    (old,) = look(ws).values()
    with following(ws, TARGET, "old", old.work) as followed:
        (new,) = look(ws, change(ws, "newer")).values()
        attempt(ws, outcome="fail")
        followed.outcome = "fail"
    assert look(ws, ws.targets) == {}
    assert [each.state for each in read_discoveries(ws, TARGET)] == ["superseded", "announced"]
    assert run(ws, "pass", event=new.work) == ""


def test_an_announcement_without_a_run_is_repeated_after_an_hour(ws: Workspace, clock: Clock) -> None:
    (found,) = look(ws).values()
    clock.seconds += watched.LOST_SECONDS / 2
    assert look(ws, ws.targets) == {}
    clock.seconds += watched.LOST_SECONDS
    assert look(ws, ws.targets)[TARGET].tries == 2
    for _ in range(2 * TRIES):
        clock.seconds += watched.LOST_SECONDS + 1
        look(ws, ws.targets)
    assert (row(ws).tries, row(ws).given_up) == (TRIES, "it was announced 5 times, and no run began")
    assert run(ws, "pass", event=found.work) == "", "the queue was long, and its run begins after all"


def test_a_store_that_does_not_answer_stops_an_event_and_no_run_by_hand(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(store: LocalStore, key: str) -> tuple[bytes, str]:
        raise StoreError("expected an answer, got none")

    monkeypatch.setattr(LocalStore, "get", broken)
    with pytest.raises(StoreError), following(ws, TARGET, "run", "sha256:1"):
        pass
    assert run(ws, "pass") == ""
