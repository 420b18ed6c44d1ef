"""Overrides: a promotion although the verdict is no pass, with a reason, an end, and an approver."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from safegene.errors import ParamsError, PromotionRefused, SafegeneError
from safegene.ledger import record_fields
from safegene.ledger.audit import audit_workspace
from safegene.ledger.live import live_record
from safegene.ledger.trust import why_expired
from safegene.pipeline.stages.promote import approve, pending, promote, resolve, revoke, rollback
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest
from tests.factories.approvals import TODAY, WEEK, As, set_signatures, waiting, workspace_with_approvers
from tests.factories.ledger import (
    TARGET,
    attempt,
    ledger_of,
    live_digest,
    make_target,
    make_verdict,
    problems_of,
    records,
)


@pytest.fixture
def ws(tmp_path: Path, people: As) -> Workspace:
    return workspace_with_approvers(tmp_path, people)


def override(ws: Workspace, people: As, *, outcome: str = "fail", expires: str = WEEK) -> str:
    make_verdict(ws, outcome=outcome)
    set_signatures(ws, 1)
    return waiting(ws, people, override=("a fix for an outage", expires))


@pytest.mark.parametrize("outcome", ["fail", "inconclusive"])
def test_an_override_needs_an_approver_and_is_never_a_pass(ws: Workspace, people: As, outcome: str) -> None:
    name = override(ws, people, outcome=outcome)
    assert live_digest(ws) is None
    with pytest.raises(PromotionRefused, match="not the author"):
        approve(ws, name)
    people("grace")
    assert any("OVERRIDE" in line and "a fix for an outage" in line for line in pending(ws, name).lines)
    done = approve(ws, name)
    assert done.outcome == "override"
    record = records(ws)[0]
    assert record.outcome == "override"
    assert record.predicate.verdict["outcome"] == outcome  # type: ignore[index,call-overload]
    assert resolve(ws, TARGET).release == done.release
    assert problems_of(ws) == []
    assert f"until {WEEK}" in "\n".join(audit_workspace(ws).notes)


def test_an_expired_override_is_not_served_and_not_rolled_back_to(
    ws: Workspace, people: As, monkeypatch: pytest.MonkeyPatch
) -> None:
    today = datetime.now(UTC).date()
    name = override(ws, people, expires=today.isoformat())
    people("grace")
    approve(ws, name)
    record = records(ws)[0]
    assert why_expired(record, today) == ""
    assert "expired on" in why_expired(record, today + timedelta(days=1))
    assert resolve(ws, TARGET)
    from safegene.ledger import trust

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Tomorrow":
            return cls.fromtimestamp(datetime.now(UTC).timestamp() + 86400, tz)

    monkeypatch.setattr(trust, "datetime", Tomorrow)
    with pytest.raises(PromotionRefused, match="an override that expired"):
        resolve(ws, TARGET)
    live = live_record(ledger_of(ws), TARGET, "production")
    assert live
    assert "expired" in live.revoked
    people("ada")
    attempt(ws, alpha=2.0)  # measured against nothing, since what is live must not be relied on
    assert resolve(ws, TARGET).release != record.release
    with pytest.raises(PromotionRefused, match="expired"):
        rollback(ws, TARGET, to=str(record.sequence))


def clock(module: ModuleType, days: int, patch: pytest.MonkeyPatch) -> None:
    """Set the clock of a module."""

    class Moved(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Moved":
            return cls.fromtimestamp(datetime.now(UTC).timestamp() + days * 86400, tz)

    patch.setattr(module, "datetime", Moved)


def test_a_clock_that_was_set_back_revives_no_override(
    ws: Workspace, people: As, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = override(ws, people, expires=WEEK)
    people("grace")
    approve(ws, name)
    assert resolve(ws, TARGET)
    with monkeypatch.context() as patch:
        clock(record_fields, 30, patch)
        people("ada")
        attempt(ws, alpha=2.0, outcome="fail")  # another machine writes on a later day
    with pytest.raises(PromotionRefused, match="an override that expired"):
        resolve(ws, TARGET)
    notes = "\n".join(audit_workspace(ws).notes)
    assert re.search(r"record 2 says that it was written on .*; today is .*: a clock was wrong", notes)
    assert problems_of(ws) == []
    attempt(ws, alpha=3.0, outcome="fail")
    assert resolve(ws, TARGET), "one wrong clock is no end of it"
    assert "record 3 after it on" in "\n".join(audit_workspace(ws).notes)


def test_an_override_is_not_approved_after_its_end_by_the_newest_record(
    ws: Workspace, people: As, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        clock(record_fields, 30, patch)
        name = override(ws, people, expires=WEEK)
    people("grace")
    with pytest.raises(PromotionRefused, match="has not expired, got one until"):
        approve(ws, name)


@pytest.mark.parametrize(
    ("reason", "expires"),
    [
        ("", WEEK),
        ("  ", WEEK),
        ("bad\x1b[2J", WEEK),
        ("r", ""),
        ("r", "tomorrow"),
        ("r", "20270101"),
        ("r", (TODAY - timedelta(days=1)).isoformat()),
        ("r", (TODAY + timedelta(days=92)).isoformat()),  # one day more than the limit: midnight may pass
        ("r", f"{TODAY.isoformat()}T00:00:00"),
    ],
)
def test_an_override_without_reason_or_end_is_refused(ws: Workspace, people: As, reason: str, expires: str) -> None:
    make_verdict(ws, outcome="fail")
    with pytest.raises(ParamsError, match="expected the override's"):
        promote(ws, TARGET, override=(reason, expires))
    assert not (ws.root / "ledger").exists()


def test_a_pass_is_not_overridden(ws: Workspace, people: As) -> None:
    with pytest.raises(ParamsError, match="a verdict to override, fail or inconclusive, got pass"):
        promote(ws, TARGET, override=("r", WEEK))


def test_no_override_passes_over_broken_evidence_or_a_revocation(ws: Workspace, people: As) -> None:
    make_verdict(ws, outcome="fail")
    people("ada")
    revoke(ws, read_manifest(ws.vector).digest, "poisoned")
    with pytest.raises(PromotionRefused, match="poisoned"):
        promote(ws, TARGET, override=("r", WEEK))
    (ws.vector / "vector.safetensors").write_bytes(b"EVIL")
    with pytest.raises(SafegeneError, match=r"vector\.safetensors"):
        promote(ws, TARGET, override=("r", WEEK))
    assert live_digest(ws) is None


def test_no_override_passes_over_evidence_without_a_seal(
    ws: Workspace, people: As, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_verdict(ws, outcome="fail")
    people("ada")
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "another cache"))
    with pytest.raises(SafegeneError, match="made by a holder of the key"):
        promote(ws, TARGET, override=("r", WEEK))
    assert live_digest(ws) is None


def test_no_override_brings_back_what_was_rolled_back(ws: Workspace, people: As) -> None:
    set_signatures(ws, 1)
    people("ada")
    attempt(ws)
    attempt(ws, alpha=2.0)
    rollback(ws, TARGET)
    make_target(ws, alpha=2.0)
    make_verdict(ws, outcome="fail")
    with pytest.raises(PromotionRefused, match="was rolled back"):
        promote(ws, TARGET, override=("r", WEEK))


def test_a_dry_run_says_that_others_must_sign(ws: Workspace, people: As) -> None:
    people("ada")
    done = promote(ws, TARGET, dry_run=True)
    assert done.outcome == "pending"
    assert "after 2 signatures" in done.message
    assert not (ws.root / "ledger").exists()
