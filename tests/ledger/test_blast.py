"""What a digest, a data set or a key touched; what a revocation with rollback leaves live."""

from pathlib import Path

import pytest

from safegene.errors import LedgerError, PromotionRefused
from safegene.ledger.blast import blast_radius
from safegene.ledger.trace import MISSING, diff_records, named_record
from safegene.pipeline.stages.promote import resolve, revoke, roll_back_revoked
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest
from tests.factories.ledger import attempt, flip_byte, ledger_of, make_family, make_workspace, problems_of, records

TARGETS = ("group", "sentiment", "topic")


@pytest.fixture
def three(tmp_path: Path) -> Workspace:
    """Three live targets on one vector; two of them were live on another vector before."""
    ws = make_workspace(tmp_path / "ws")
    make_family(ws, rank=2)
    for number, target in enumerate(TARGETS[:2]):
        assert attempt(ws, target, alpha=1.0 + number) == "pass"
    make_family(ws, rank=4)
    for number, target in enumerate(TARGETS):
        assert attempt(ws, target, alpha=4.0 + number) == "pass"
    assert attempt(ws, "adversarial", alpha=9.0, outcome="fail") == "fail"
    return ws


def vector_of(ws: Workspace) -> str:
    return read_manifest(ws.vector).digest


def test_the_blast_radius_of_a_vector_names_every_live_target(three: Workspace) -> None:
    radius = blast_radius(ledger_of(three), vector_of(three))
    assert sorted(live.record.target for live in radius.live) == list(TARGETS)
    assert [one.record.outcome for one in radius.touched] == ["fail", "pass", "pass", "pass"]
    assert all("artefacts.vector" in one.places for one in radius.touched)
    assert (radius.unread, radius.revoked) == ((), "")
    (old,) = {one.artefacts["vector"] for one in records(three)} - {vector_of(three)}
    assert blast_radius(ledger_of(three), old).live == ()
    assert len(blast_radius(ledger_of(three), old).touched) == 2


def test_data_sets_judges_keys_and_the_start_of_a_digest_are_found(three: Workspace) -> None:
    ledger = ledger_of(three)
    key = ledger.keys[0].keyid
    for name in ("prompts/gate.jsonl", key, key[:8], "sha256:" + vector_of(three)[7:19]):
        assert {live.record.target for live in blast_radius(ledger, name).live} == set(TARGETS), name
    assert {one.places for one in blast_radius(ledger, key).touched} == {("signature",)}
    for name in ("", "sha256:", "prompts/none.jsonl", "0000000000", vector_of(three)[7:12]):
        with pytest.raises(LedgerError, match="expected a digest, a key id"):
            blast_radius(ledger, name)


def test_a_channel_that_cannot_be_read_is_said(three: Workspace) -> None:
    (three.root / "ledger" / "channels" / "production" / "topic").write_text("{}")
    radius = blast_radius(ledger_of(three), vector_of(three))
    assert [live.record.target for live in radius.live] == ["group", "sentiment"]
    assert "channels/production/topic" in radius.unread[0]


def test_a_revocation_with_rollback_leaves_the_previous_record_or_none(three: Workspace) -> None:
    before = {target: record for record in records(three)[3:] for target in (record.target,)}
    revocation = revoke(three, vector_of(three), "poisoned")
    done = {one.live.record.target: one for one in roll_back_revoked(three, revocation)}
    assert sorted(done) == list(TARGETS)
    for target in TARGETS[:2]:
        assert resolve(three, target).release == before[target].release
        assert done[target].restored == records(three)[0 if target == "sentiment" else 1].digest
    assert (done["topic"].restored, done["topic"].failed) == (None, False)
    with pytest.raises(PromotionRefused, match="poisoned"):
        resolve(three, "topic")
    assert problems_of(three) == []
    assert blast_radius(ledger_of(three), vector_of(three)).revoked.endswith("poisoned")


def test_a_target_that_cannot_be_rolled_back_does_not_stop_the_others(three: Workspace) -> None:
    first = next(record for record in reversed(records(three)) if record.target == "group")
    release = three.root / "ledger" / "releases" / str(first.release).removeprefix("sha256:")
    flip_byte(release / "candidate" / "adapter_model.safetensors")
    done = roll_back_revoked(three, revoke(three, vector_of(three), "poisoned"))
    failed = {one.live.record.target: one.failed for one in done}
    assert failed == {"group": True, "sentiment": False, "topic": False}
    assert resolve(three, "sentiment")
    with pytest.raises(PromotionRefused, match="poisoned"):
        resolve(three, "group")


def test_what_was_revoked_earlier_is_passed_over(three: Workspace) -> None:
    (old,) = {one.artefacts["vector"] for one in records(three)} - {vector_of(three)}
    assert roll_back_revoked(three, revoke(three, old, "poisoned as well")) == ()
    done = roll_back_revoked(three, revoke(three, vector_of(three), "poisoned"))
    assert [(one.restored, one.failed) for one in done] == [(None, False)] * 3


def test_two_records_are_compared_value_by_value(three: Workspace) -> None:
    ledger = ledger_of(three)
    now, before = named_record(ledger, "group", "production"), named_record(ledger, "0", "production")
    assert (now.target, before.target, now.sequence) == ("group", "group", 2)
    places = {item.place: (item.first, item.second) for item in diff_records(now, before)}
    assert places["vector.recipe.vector.rank"] == (4, 2)
    assert places["artefacts.vector"] == (now.artefacts["vector"], before.artefacts["vector"])
    assert places["channel.replaces"] == (before.digest, None)
    assert "target" not in places
    assert "policy.digest" not in places
    assert diff_records(now, now) == ()
    assert named_record(ledger, now.digest[7:20], "production") == now
    refused = next(record for record in records(three) if record.target == "adversarial")
    assert {item.place: item.first for item in diff_records(now, refused)}["outcome"] == "pass"
    assert any(item.second == MISSING for item in diff_records(now, refused) if item.place.startswith("rates.hrr."))
    with pytest.raises(LedgerError, match="expected a target that is live on production"):
        named_record(ledger, "adversarial", "production")
