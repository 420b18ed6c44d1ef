"""What is revoked, or rests on it, is not promoted, served, restored or compared with."""

import pytest

from safegene.errors import PromotionRefused, SafegeneError
from safegene.ledger.keys import load_signer
from safegene.ledger.revocation import record_revocation
from safegene.pipeline.stages.promote import pin_incumbent, promote, promote_attempt, resolve, revoke, rollback
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest
from tests.factories.ledger import (
    TARGET,
    attempt,
    ledger_of,
    live_digest,
    make_family,
    make_target,
    make_verdict,
    records,
)


def test_a_revoked_vector_is_not_promoted_served_or_rolled_back_to(ws: Workspace) -> None:
    ledger = ledger_of(ws)
    attempt(ws, alpha=1.0)
    vector = read_manifest(ws.vector).digest
    revocation = record_revocation(ledger, load_signer(ledger.keys), vector, "poisoned", fields={})
    assert revocation.unread == ()
    assert revocation.record.outcome == "revocation"
    assert [live.record.target for live in revocation.affected] == [TARGET]
    with pytest.raises(PromotionRefused, match="poisoned"):
        resolve(ws, TARGET)
    assert attempt(ws, alpha=2.0) == "fail"
    make_family(ws, rank=2)
    assert attempt(ws, alpha=3.0) == "pass"
    assert resolve(ws, TARGET)
    with pytest.raises(PromotionRefused, match="poisoned"):
        rollback(ws, TARGET)
    with pytest.raises(SafegeneError, match="expected the digest"):
        record_revocation(ledger, load_signer(ledger.keys), "vector", "?", fields={})


def test_what_is_revoked_is_named_by_what_a_release_rests_on(ws: Workspace) -> None:
    """Not by the record that happens to stand before it."""
    attempt(ws, alpha=1.0)
    attempt(ws, alpha=2.0)
    first, second = records(ws)[1], records(ws)[0]
    with pytest.raises(SafegeneError, match="got that of a record") as refused:
        revoke(ws, first.digest, "?")
    assert str(first.release) in refused.value.remedy
    assert revoke(ws, str(first.release), "poisoned").affected == ()
    assert resolve(ws, TARGET).release == second.release
    with pytest.raises(PromotionRefused, match="poisoned"):
        rollback(ws, TARGET)


def test_a_release_revoked_on_one_channel_is_not_promoted_on_another(ws: Workspace) -> None:
    staging = ws.params.promote.model_copy(update={"channel": "staging"})
    done = promote(ws, TARGET, channel=staging.channel)
    revoke(ws, str(done.release), "poisoned")
    assert promote_attempt(ws, TARGET) == "fail"
    assert live_digest(ws) is None


def test_a_revocation_is_recorded_although_a_pointer_cannot_be_read(ws: Workspace) -> None:
    promote(ws, TARGET)
    (ws.root / "ledger" / "channels" / "production" / "other").write_text("{}")
    digest = read_manifest(ws.vector).digest
    revocation = revoke(ws, digest, "poisoned")
    assert [live.record.target for live in revocation.affected] == [TARGET]
    assert "channels/production/other" in revocation.unread[0]
    with pytest.raises(PromotionRefused, match="poisoned"):
        resolve(ws, TARGET)


def test_what_is_revoked_is_no_reference_for_its_successor(ws: Workspace) -> None:
    attempt(ws, alpha=1.0)
    revoke(ws, str(live_digest(ws)), "poisoned")
    make_target(ws, alpha=2.0)
    assert pin_incumbent(ws, TARGET) is None
    make_verdict(ws)
    assert promote_attempt(ws, TARGET) == "pass"
