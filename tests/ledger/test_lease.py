"""Leases: one holder at a time, whatever the clocks say and whoever is killed; finished work is not done again."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from safegene.errors import PromotionRefused, StoreError
from safegene.ledger.lease import Lease, WorkLease, require_fence
from safegene.ledger.store import LocalStore, Store
from safegene.workspace.digest import digest_json

WORK = digest_json("work")
RECORD = digest_json("record")


class Time:
    """A clock that a test moves; whoever sleeps moves it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.while_asleep: Callable[[], None] = lambda: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.while_asleep()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return LocalStore(tmp_path)


def lease(store: Store, run: str = "", time: Time | None = None, seconds: float = 60.0) -> WorkLease:
    time = time or Time()
    return WorkLease(store, WORK, "sentiment", run, seconds, time.sleep, time)


def elsewhere(store: Store, **change: object) -> None:
    """Make the present lease one of another machine."""
    held = lease(store)
    (found, etag) = held._read() or pytest.fail("no lease")
    held._write(found.model_copy(update={"machine": "another", **change}), etag)


def test_the_first_run_holds_the_work_and_the_next_takes_its_result(store: Store) -> None:
    first, second = lease(store, "one"), lease(store, "two")
    assert first.acquire() is None
    assert first.fence == 1
    first.confirm()
    first.end(RECORD)
    done = second.acquire()
    assert done is not None
    assert (done.state, done.record, done.run) == ("done", RECORD, "one")
    assert second.fence == 0
    assert second.acquire(counts=lambda lease: False) is None  # the result no longer counts
    assert second.fence == 2


def test_a_run_that_stopped_before_the_end_leaves_the_work_to_the_next(store: Store) -> None:
    first, second = lease(store), lease(store)
    first.acquire()
    first.end(None)
    assert second.acquire() is None
    assert second.fence == 2


def test_a_living_holder_is_waited_for_and_named_once(store: Store) -> None:
    first, time, told = lease(store, "one"), Time(), list[Lease]()
    first.acquire()
    elsewhere(store)
    first._held = lease(store)._read()
    beats = iter(range(100))

    def beat() -> None:
        if next(beats) < 50:
            first.confirm()
        elif first._held:
            first.end(RECORD)

    time.while_asleep = beat
    done = lease(store, "two", time).acquire(told.append)
    assert done is not None
    assert done.record == RECORD
    assert [named.run for named in told] == ["one"]
    assert "run one (process" in told[0].named


def test_a_silent_holder_loses_the_work_and_is_told_who_has_it(store: Store) -> None:
    first, time = lease(store, "one"), Time()
    first.acquire()
    elsewhere(store)
    first._held = lease(store)._read()
    second = lease(store, "two", time)
    assert second.acquire() is None
    assert time.now >= 60.0
    assert second.fence == 2
    with pytest.raises(PromotionRefused, match=r"taken over by run two \(process .*fencing number 2\)"):
        first.confirm()
    first.end(RECORD)  # of no effect
    assert (present := second.present())
    assert (present.fence, present.state) == (2, "held")
    second.confirm()


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_a_wall_clock_that_is_set_gives_no_second_holder(
    store: Store, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    first, time = lease(store, "one"), Time()
    first.acquire()
    elsewhere(store)
    first._held = lease(store)._read()
    monkeypatch.setattr("time.time", lambda: jump)
    rounds = iter(range(200))
    time.while_asleep = lambda: first.confirm() if next(rounds) < 199 else first.end(None)
    second = lease(store, "two", time)
    assert second.acquire() is None
    assert next(rounds, None) is None, "the second run must wait as long as the first one is alive"


def test_a_killed_holder_on_this_machine_is_replaced_at_once(store: Store, tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from safegene.ledger.lease import WorkLease; "
        "from safegene.ledger.store import LocalStore; "
        f"WorkLease(LocalStore(Path({str(tmp_path)!r})), {WORK!r}, 'sentiment', 'killed').acquire(); "
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -9
    time = Time()
    second = lease(store, "two", time)
    assert second.acquire() is None
    assert (second.fence, time.now) == (2, 0.0)


def test_of_a_hundred_runs_at_once_each_work_has_one_holder(store: Store) -> None:
    evaluated, lock = list[int](), threading.Lock()

    def run(number: int) -> str:
        mine = WorkLease(store, WORK, "sentiment", str(number), 20.0)
        done = mine.acquire()
        if done is not None:
            return str(done.record)
        with mine.renewed():
            with lock:
                evaluated.append(number)
            mine.confirm()
        mine.end(RECORD)
        return RECORD

    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(run, range(100))) == {RECORD}
    assert len(evaluated) == 1


def test_what_goes_live_must_have_the_newest_fencing_number(store: Store) -> None:
    require_fence(store, {"trigger": "manual"})  # by hand, without a lease
    first = lease(store, "one")
    first.acquire()
    mine = {"work": WORK, "fence": "1"}
    require_fence(store, mine)
    elsewhere(store)
    lease(store, "two").acquire()
    with pytest.raises(PromotionRefused, match=r"fencing number 1, got run two .*fencing number 2.*took it over"):
        require_fence(store, mine)
    with pytest.raises(PromotionRefused, match="got no lease"):
        require_fence(store, {"work": digest_json("other"), "fence": "1"})


def test_a_renewal_that_fails_is_tried_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, put, failures = lease(store, seconds=0.12), LocalStore.put_if_match, list[int]()

    def sometimes(self: LocalStore, key: str, data: bytes, etag: str) -> str:
        if len(failures) < 2:
            failures.append(1)
            raise StoreError("expected an answer, got none")
        renewed.set()
        return put(self, key, data, etag)

    renewed = threading.Event()
    mine.acquire()
    monkeypatch.setattr(LocalStore, "put_if_match", sometimes)
    with mine.renewed():
        assert renewed.wait(20)
    assert len(failures) == 2
    assert os.getpid() == (mine.present() or pytest.fail("no lease")).process
