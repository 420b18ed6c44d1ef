"""The report and the ledger: who signed what, a target's history, and what changed since what is live."""

import json

import pytest

from safegene.ledger.pins import owner_of
from safegene.report import write_report
from safegene.report.records import Comparison, compare_with_live, history_rows, read_records
from safegene.report.state import TargetState, read_state
from safegene.workspace.layout import Workspace
from tests.factories.ledger import attempt, ledger_of, make_target, make_workspace
from tests.factories.pages import plain, section, whole


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A target with a pass that is live, a later candidate that was refused, and a third that has a verdict only."""
    ws = make_workspace(tmp_path_factory.mktemp("ws") / "ws")
    assert attempt(ws, alpha=1.0) == "pass"
    assert attempt(ws, alpha=2.0, outcome="fail") == "fail"
    make_target(ws, alpha=3.0)
    return ws


def the_target(ws: Workspace) -> TargetState:
    (target,) = read_state(ws).targets
    return target


def compared(ws: Workspace) -> Comparison:
    return compare_with_live(the_target(ws), read_state(ws).family, read_records(ws))


def test_the_history_has_every_record_with_outcome_date_and_signer(ws: Workspace) -> None:
    (key,) = ledger_of(ws).keys
    rows = history_rows(the_target(ws), read_records(ws))
    assert [(row.sequence, row.outcome, row.tone, row.live) for row in rows] == [
        (1, "fail", "fail", False),
        (0, "pass", "pass", True),
    ]
    assert all(row.signer == (owner_of(key) or f"key {key.keyid[:12]}") for row in rows)
    assert all(row.when.endswith(" UTC") for row in rows)
    assert rows[0].harm == "0.0% → 100.0%"


def test_the_page_names_the_newest_record_and_the_history(ws: Workspace) -> None:
    page = whole(write_report(ws))
    assert f"Newest record 1, {read_records(ws).newest[0].when}, fail of sentiment, signed by key" in plain(page)
    text = section(page, "sentiment")
    assert "the newest first" in text
    assert "What is live was put there by record 0" in text


def test_what_changed_since_what_is_live_is_named_and_what_did_not(ws: Workspace) -> None:
    found = compared(ws)
    changed = {what for what, _, _ in found.changed}
    assert {"Candidate", "Judgements", "Verdict"} <= changed
    assert {"Fine-tune", "Safety vector", "Layer selection", "Policy", "Judge"} <= set(found.same)
    assert ("Harmful-response rate", "0.0%", "0.0%", "+0.0 pts") in found.rates


def test_a_candidate_that_is_live_is_not_compared_with_itself(tmp_path_factory: pytest.TempPathFactory) -> None:
    ws = make_workspace(tmp_path_factory.mktemp("live") / "ws")
    assert "Nothing is live" in compared(ws).sentence
    assert attempt(ws, alpha=1.0) == "pass"
    assert compared(ws).sentence.startswith("The candidate is what is live, by record 0 of ")


def test_a_ledger_that_does_not_verify_gives_no_history(tmp_path_factory: pytest.TempPathFactory) -> None:
    ws = make_workspace(tmp_path_factory.mktemp("broken") / "ws")
    assert attempt(ws, alpha=1.0) == "pass"
    tip = ws.root / "ledger" / "tip"
    tip.write_text(json.dumps({**json.loads(tip.read_text()), "sequence": 7}))
    found = read_records(ws)
    assert found.newest == ()
    assert "the history is unknown: " in found.problem
    assert "the history is unknown" in plain(write_report(ws).read_text())
    assert compared(ws).sentence.startswith("Unknown: ")
