"""What ``safegene promote --override``, ``approve`` and ``keys`` print, and their exit codes."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from safegene.workspace.layout import Workspace
from tests.factories.commands import run
from tests.factories.ledger import TARGET, make_verdict, make_workspace, records

WEEK = (datetime.now(UTC).date() + timedelta(days=7)).isoformat()


class Person:
    """Runs commands with a folder of keys of their own."""

    def __init__(self, folder: Path) -> None:
        self.env = {"SAFEGENE_KEYS": str(folder), "SAFEGENE_SIGNING_KEY": ""}

    def __call__(self, ws: Workspace, *words: str, code: int = 0) -> Any:
        return run(ws.root, *words, code=code, **self.env)


def team(tmp_path: Path) -> tuple[Workspace, Person, Person, str]:
    """Ada, whose key is pinned by ``init``, and Grace, whose key she pins as an approver's."""
    with pytest.MonkeyPatch.context() as patch:  # Ada makes the evidence, and promotes
        patch.setenv("SAFEGENE_KEYS", str(tmp_path / "ada"))
        ws = make_workspace(tmp_path / "ws")
    ada, grace = Person(tmp_path / "ada"), Person(tmp_path / "grace")
    key = grace(ws, "keys", "create", "--scheme", "ecdsa-sha2-nistp256").stdout.strip()
    (tmp_path / "grace.json").write_text(grace(ws, "keys", "show", key).stdout)
    own = ada(ws, "keys", "list").stdout.strip()
    said = ada(ws, "keys", "pin", own[:12], "--owner", "Ada").stdout
    assert said == f"key {own[:12]}.. of Ada is pinned and signs: record 0; commit ledger.pub and ledger\n"
    said = ada(ws, "keys", "pin", str(tmp_path / "grace.json"), "--owner", "Grace", "--approver").stdout
    assert said == f"key {key[:12]}.. of Grace is pinned and may approve: record 1; commit ledger.pub and ledger\n"
    return ws, ada, grace, key


def test_a_promotion_waits_for_an_approver_and_then_is_live(tmp_path: Path) -> None:
    ws, ada, grace, key = team(tmp_path)
    assert ada(ws, "keys", "require", "2").stdout.startswith("a promotion needs 2 signatures of different persons")
    waits = ada(ws, "promote", TARGET, "--responsible", "Ada L.", "--change", "first", code=4).stdout
    assert f"{TARGET}: not live yet; record 3 waits for 1 more signature" in waits
    assert "an approver who is not the author" in ada(ws, "approve", "3", code=3).stderr
    shown = grace(ws, "approve", "3", "--dry-run").stdout
    assert shown.startswith(f"record 3 by Ada: {TARGET} on production, release sha256:")
    assert "verdict: pass" in shown
    assert "note record 3 waits for approval" in ada(ws, "audit", "verify").stdout
    done = grace(ws, "approve", "3").stdout
    assert f"{TARGET}: promoted to production as approved by Grace" in done
    assert json.loads(ada(ws, "resolve", TARGET).stdout)["sequence"] == 4
    newest = records(ws)[0].predicate
    assert newest.responsible == {
        "person": "Ada L.",
        "date": str(newest.run["start"])[:10],
        "stated_by": "--responsible",
    }
    assert newest.change == {"class": "candidate", "summary": "first"}
    gone = ada(ws, "keys", "revoke", key[:10], "--reason", "stolen", "--since", "4").stdout.splitlines()
    assert gone == [
        "stolen: record 5; commit ledger.pub and ledger",
        f"no longer trusted record 4: pass for {TARGET} on production",
    ]
    assert "which is not trusted from record 4 on" in ada(ws, "resolve", TARGET, code=3).stderr
    assert "record 4 (pass for sentiment) is signed by the key" in ada(ws, "audit", "verify").stdout


def test_an_override_says_what_it_passes_over(tmp_path: Path) -> None:
    ws, ada, grace, _ = team(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFEGENE_KEYS", str(tmp_path / "ada"))
        make_verdict(ws, outcome="fail")
    for words in (("--override", "r"), ("--expires", WEEK)):
        assert "--expires DATE together" in ada(ws, "promote", TARGET, *words, code=2).stderr
    ada(ws, "promote", TARGET, "--override", "an outage", "--expires", WEEK, code=4)
    assert f"OVERRIDE of fail until {WEEK}: an outage" in grace(ws, "approve", "2", "--dry-run").stdout
    assert f"by an override until {WEEK} by Grace" in grace(ws, "approve", "2").stdout
    assert records(ws)[0].outcome == "override"
    assert f"is an override for {TARGET} on production, approved by Grace, until {WEEK}" in (
        ada(ws, "audit", "verify").stdout
    )


def test_a_rotated_key_is_replaced_on_this_machine(tmp_path: Path) -> None:
    ws, ada, _, _ = team(tmp_path)
    assert "takes the place of" in ada(ws, "keys", "rotate").stdout
    assert len(ada(ws, "keys", "list").stdout.split()) == 2
    ada(ws, "promote", TARGET)
    assert json.loads(ada(ws, "resolve", TARGET).stdout)["sequence"] == 3
