"""The same event in many workspaces that share a ledger is one evaluation, and its loser knows who won."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from safegene.errors import PromotionRefused
from safegene.ledger.chain import open_ledger
from safegene.ledger.lease import WorkLease
from safegene.pipeline.stages.promote import pin_incumbent, promote_attempt, record_error, rollback
from safegene.pipeline.work import work_digest, working_alone
from safegene.workspace.layout import Workspace
from tests.factories.ledger import TARGET, attempt, make_candidate, make_verdict, make_workspace

RUN = {"run_id": "r", "trigger": "event"}


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace whose ledger lies outside of it; its target is fetched, not evaluated."""
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    ws = make_workspace(tmp_path / "ws", ledger=str(tmp_path / "ledger"))
    for folder in (ws.candidate(TARGET), ws.judgements(TARGET), ws.verdict(TARGET)):
        shutil.rmtree(folder)
    return ws


def clone(ws: Workspace, name: str) -> Workspace:
    return Workspace(Path(shutil.copytree(ws.root, ws.root.with_name(name))))


def realign(ws: Workspace, evaluated: list[str], run: dict[str, str] = RUN) -> str:
    """What the flow does with a target after it is fetched."""
    with working_alone(ws, TARGET, run) as work:
        if work.decided:
            return work.decided
        evaluated.append(ws.root.name)
        make_candidate(ws)
        pin_incumbent(ws, TARGET)
        make_verdict(ws)
        outcome = promote_attempt(ws, TARGET, run=work.run)
        work.finished = True
    return outcome


def test_a_hundred_events_in_as_many_places_are_one_evaluation(ws: Workspace) -> None:
    places, evaluated = [clone(ws, f"clone-{number}") for number in range(20)], list[str]()
    with ThreadPoolExecutor(20) as pool:
        outcomes = list(pool.map(lambda number: realign(places[number % 20], evaluated), range(20)))
    assert len(evaluated) == 1
    for _ in range(80):
        outcomes.append(realign(ws, evaluated))
    assert outcomes == ["pass"] * 100
    assert len(evaluated) == 1
    records = list(open_ledger(ws.params.promote, ws.root).walk())
    assert len(records) == 1
    assert records[0].predicate.run["fence"] == "1"
    assert records[0].predicate.run["work"] == work_digest(ws, TARGET)


def test_other_work_is_other_work(ws: Workspace) -> None:
    known = {work_digest(ws, TARGET)}
    params = ws.root / "params.yaml"
    for old, new in (
        ("{test: fixed", "{test: fixed, block_prompts: 16"),
        ("promote:", "calibrate: {seed: 1}\npromote:"),
    ):
        assert old in params.read_text()
        params.write_text(params.read_text().replace(old, new))
        known.add(work_digest(ws, TARGET))
    (ws.prompts / "gate.jsonl").write_bytes(b'{"id": "another"}\n')
    known.add(work_digest(ws, TARGET))
    (ws.tasks / "sentiment.jsonl").write_bytes(b'{"id": "another"}\n')
    known.add(work_digest(ws, TARGET))
    assert len(known) == 5


def test_a_result_that_no_longer_counts_is_worked_on_again(ws: Workspace) -> None:
    evaluated: list[str] = []
    other = clone(ws, "other")
    assert realign(ws, evaluated) == "pass"
    attempt(ws, alpha=2.0)
    assert realign(other, evaluated) != "error"
    assert evaluated == ["ws", "other"], "something else is live since"
    rollback(ws, TARGET)


def test_a_run_that_was_killed_leaves_its_work_to_the_next(ws: Workspace) -> None:
    evaluated: list[str] = []
    ledger = open_ledger(ws.params.promote, ws.root)
    lease = WorkLease(ledger.store, work_digest(ws, TARGET), TARGET, "killed")
    lease.acquire()
    held = lease._read()
    assert held
    lease._write(held[0].model_copy(update={"process": 2**22 + 1}), held[1])  # no process has this number
    assert realign(ws, evaluated) == "pass"
    (record,) = ledger.walk()
    assert record.predicate.run["fence"] == "2"


def test_a_run_that_was_taken_over_puts_nothing_live_and_its_record_says_who_won(ws: Workspace) -> None:
    ledger, other = open_ledger(ws.params.promote, ws.root), clone(ws, "other")
    with working_alone(ws, TARGET, RUN) as work:
        make_candidate(ws)
        pin_incumbent(ws, TARGET)
        make_verdict(ws)
        lease = WorkLease(ledger.store, work.run["work"], TARGET, "winner", seconds=0.01)
        lease.acquire()
        with pytest.raises(PromotionRefused, match="run winner .*took it over") as caught:
            promote_attempt(ws, TARGET, run=work.run)
    record_error(ws, TARGET, caught.value, run=RUN)
    (record,) = ledger.walk()
    assert record.outcome == "error"
    assert "run winner" in record.reason
    assert "fencing number 2" in record.reason
    lease.end(None)
    assert realign(other, []) == "pass"


def test_a_ledger_inside_the_workspace_needs_no_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    ws = make_workspace(tmp_path / "ws")
    with working_alone(ws, TARGET, RUN) as work:
        assert work.run == RUN
    assert not (ws.root / "ledger" / "leases").exists()
