"""Promotions that need more than one person: who may approve, what is approved, and what is no approval."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.dsse import Envelope

from safegene.errors import LedgerError, PromotionRefused, SafegeneError
from safegene.ledger import approval as approval_module
from safegene.ledger.keys import create_key, load_signer, public_key
from safegene.ledger.live import revocations
from safegene.ledger.pins import APPROVE, PinnedKeys, read_pinned_keys, with_extras, write_pinned_keys
from safegene.ledger.record import PAYLOAD, Record, RecordDraft
from safegene.ledger.trust import approval_of, approval_statement, request_of, why_untrusted
from safegene.pipeline.stages.promote import approve, pending, promote, reject, resolve, revoke
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest
from tests.factories.approvals import As, set_signatures, waiting, workspace_with_approvers
from tests.factories.commands import run
from tests.factories.ledger import (
    TARGET,
    attempt,
    ledger_of,
    live_digest,
    make_verdict,
    make_workspace,
    problems_of,
    records,
)


@pytest.fixture
def ws(tmp_path: Path, people: As) -> Workspace:
    return workspace_with_approvers(tmp_path, people)


def test_a_promotion_goes_live_when_another_person_has_signed(ws: Workspace, people: As) -> None:
    name = waiting(ws, people)
    assert live_digest(ws) is None
    with pytest.raises(LedgerError, match="got nothing"):
        resolve(ws, TARGET)
    people("grace")
    done = approve(ws, name)
    assert (done.outcome, done.release) == ("pass", live_digest(ws))
    assert resolve(ws, TARGET).release == done.release
    assert [record.outcome for record in records(ws)] == ["pass", "pending"]
    assert problems_of(ws) == []
    approval = approval_of(records(ws)[0])
    assert approval
    assert (approval.author, approval.approvers) == ("Ada", ("Grace",))
    assert records(ws)[0].artefacts == records(ws)[1].artefacts


def test_an_outsider_verifies_the_approvals_with_securesystemslib_alone(ws: Workspace, people: As) -> None:
    set_signatures(ws, 3)
    name = waiting(ws, people)
    for person in ("grace", "edsger"):
        people(person)
        approve(ws, name)
    newest, asked = records(ws)
    content: Any = newest.predicate.approval
    envelope = Envelope.from_dict(content["envelope"])
    keys = [key for key in ledger_of(ws).keys if key.keyid in envelope.signatures]
    assert len(envelope.verify(keys, 2)) == 2
    assert asked.digest.removeprefix("sha256:").encode() in envelope.payload


def test_each_approver_adds_one_signature_and_the_last_one_publishes(ws: Workspace, people: As) -> None:
    set_signatures(ws, 3)
    name = waiting(ws, people)
    people("grace")
    for _ in range(2):  # twice is once
        done = approve(ws, name)
        assert done.outcome == "pending"
        assert "approved by Grace, and 1 more needed" in done.message
    assert live_digest(ws) is None
    assert pending(ws, name).approvers == ("Grace",)
    people("barbara")
    assert approve(ws, name).outcome == "pass"
    assert live_digest(ws)


def test_the_author_does_not_approve(ws: Workspace, people: As) -> None:
    name = waiting(ws, people)
    with pytest.raises(PromotionRefused, match="an approver who is not the author"):
        approve(ws, name)
    assert live_digest(ws) is None


@pytest.mark.parametrize("owner", ["Ada", " ADA "])
def test_a_second_key_of_the_author_does_not_approve(ws: Workspace, people: As, tmp_path: Path, owner: str) -> None:
    folder = tmp_path / "ada2"
    second = with_extras(public_key(create_key(folder), folder), owner=owner, roles=[APPROVE])
    pin(ws, second)
    name = waiting(ws, people)
    people("ada2")
    with pytest.raises(PromotionRefused, match="of the same person"):
        approve(ws, name)
    assert live_digest(ws) is None


def pin(ws: Workspace, *keys: Any) -> None:
    """Pin keys in place of those with the same id."""
    file = ws.root / "ledger.pub"
    ids = {key.keyid for key in keys}
    pinned = read_pinned_keys(file)
    write_pinned_keys(file, PinnedKeys((*(k for k in pinned.keys if k.keyid not in ids), *keys), pinned.signatures))


def test_a_signer_who_is_no_approver_does_not_approve(ws: Workspace, people: As, tmp_path: Path) -> None:
    folder = tmp_path / "mallory"
    pin(ws, with_extras(public_key(create_key(folder), folder), owner="Mallory"))
    name = waiting(ws, people)
    people("mallory")
    with pytest.raises(PromotionRefused, match="the key of an approver, got .* of Mallory"):
        approve(ws, name)


def test_a_revoked_approver_does_not_approve(ws: Workspace, people: As) -> None:
    name = waiting(ws, people)
    (grace,) = [key for key in ledger_of(ws).keys if key.unrecognized_fields["owner"] == "Grace"]
    people("grace")
    signer = load_signer(ledger_of(ws).keys)
    pin(ws, with_extras(grace, until=0))
    ledger = ledger_of(ws)
    with pytest.raises(PromotionRefused, match="which was revoked"):
        approval_module.approve(ledger, signer, approval_module.find_pending(ledger, name))


def test_a_key_without_an_owner_asks_nobody(ws: Workspace, people: As) -> None:
    (ada,) = [key for key in ledger_of(ws).keys if key.unrecognized_fields["owner"] == "Ada"]
    pin(ws, with_extras(ada, owner=None))
    people("ada")
    with pytest.raises(LedgerError, match="expected a key with an owner") as caught:
        promote(ws, TARGET)
    assert "safegene keys pin" in caught.value.remedy


def test_the_same_claim_waits_once(ws: Workspace, people: As) -> None:
    name = waiting(ws, people)
    assert waiting(ws, people) == name
    assert len(records(ws)) == 1


def test_an_older_attempt_is_not_approved(ws: Workspace, people: As) -> None:
    name = waiting(ws, people)
    make_verdict(ws, outcome="fail")
    with pytest.raises(PromotionRefused):
        promote(ws, TARGET)
    people("grace")
    with pytest.raises(PromotionRefused, match="the newest attempt for sentiment"):
        approve(ws, name)
    for wrong in ("1", "77", "nothing"):
        with pytest.raises(PromotionRefused, match="that waits for approval"):
            approve(ws, wrong)


def test_what_was_revoked_or_replaced_meanwhile_is_not_approved(ws: Workspace, people: As) -> None:
    name = waiting(ws, people)
    revoke(ws, read_manifest(ws.vector).digest, "poisoned")
    people("grace")
    with pytest.raises(PromotionRefused, match="poisoned"):
        approve(ws, name)
    assert live_digest(ws) is None
    assert records(ws)[0].outcome == "fail"


def test_a_claim_is_not_approved_after_something_else_went_live(ws: Workspace, people: As) -> None:
    name = waiting(ws, people)
    set_signatures(ws, 1)
    attempt(ws, alpha=2.0)
    live = live_digest(ws)
    people("grace")
    with pytest.raises(PromotionRefused, match="after which record 1 ended in pass"):
        approve(ws, name)
    assert live_digest(ws) == live


def test_changed_bytes_of_the_release_are_not_approved(ws: Workspace, people: As) -> None:
    name = waiting(ws, people)
    release = request_of(records(ws)[0]).release.removeprefix("sha256:")
    (ws.root / "ledger" / "releases" / release / "candidate" / "adapter_model.safetensors").write_bytes(b"EVIL")
    people("grace")
    with pytest.raises(SafegeneError, match="adapter_model"):
        approve(ws, name)
    assert live_digest(ws) is None


def sealed(ws: Workspace, people: As, person: str, **changes: Any) -> Record:
    """What a person who writes records by hand puts live: the newest pending record as a promotion, with changes."""
    people(person)
    ledger = ledger_of(ws)
    (asked,) = [record for record in records(ws) if record.outcome == "pending"]
    content: dict[str, Any] = {
        "outcome": "pass",
        "target": asked.target,
        "channel": asked.channel,
        "reason": "trust me",
        "artefacts": asked.artefacts,
        "fields": asked.predicate.fields(),
        "release": request_of(asked).release,
        **changes,
    }
    record = ledger.append(RecordDraft(**content), load_signer(ledger.keys))
    ledger.publish(record, ledger.pointer(record.channel, record.target))
    return record


def envelope_of(ws: Workspace, people: As, *persons: str, statement: bytes | None = None) -> dict[str, Any]:
    (asked,) = [record for record in records(ws) if record.outcome == "pending"]
    envelope = Envelope(statement or approval_statement(asked), PAYLOAD, {})
    for person in persons:
        people(person)
        envelope.sign(load_signer(ledger_of(ws).keys))
    return {
        "pending": asked.digest,
        "request": request_of(asked).model_dump(),
        "author": "Ada",
        "approvers": ["Grace"],
        "envelope": envelope.to_dict(),
    }


FORGERIES: dict[str, Callable[[Workspace, As], dict[str, Any]]] = {
    "no approval, signatures pinned": lambda ws, people: {"approval": None},
    "nobody signed": lambda ws, people: {"approval": envelope_of(ws, people)},
    "the author signed": lambda ws, people: {"approval": envelope_of(ws, people, "ada")},
    "another statement": lambda ws, people: {"approval": envelope_of(ws, people, "grace", statement=b"{}")},
    "fewer required": lambda ws, people: {
        "approval": (content := envelope_of(ws, people, "ada"))
        and {**content, "request": {**content["request"], "required": 1}}
    },
    "another request": lambda ws, people: {
        "approval": (content := envelope_of(ws, people, "grace"))
        and {**content, "request": {**content["request"], "measured_against": "sha256:" + "0" * 64}}
    },
    "other rates": lambda ws, people: {"approval": envelope_of(ws, people, "grace"), "rates": {"hrr": 0}},
}


@pytest.mark.parametrize("how", FORGERIES)
def test_a_promotion_without_the_signatures_that_it_needs_is_not_served(ws: Workspace, people: As, how: str) -> None:
    pinned = read_pinned_keys(ws.root / "ledger.pub")
    write_pinned_keys(ws.root / "ledger.pub", PinnedKeys(pinned.keys, ((0, 2),)))
    waiting(ws, people)
    (asked,) = records(ws)
    changes = FORGERIES[how](ws, people)
    sealed(ws, people, "ada", fields={**asked.predicate.fields(), **changes})
    with pytest.raises(PromotionRefused, match="expected nothing revoked, got: record 1"):
        resolve(ws, TARGET)
    assert "expected a promotion that others approved, got none: record 1" in "\n".join(problems_of(ws))


def test_a_second_key_of_the_author_is_no_approval_however_the_record_was_written(
    ws: Workspace, people: As, tmp_path: Path
) -> None:
    folder = tmp_path / "ada2"
    pin(ws, with_extras(public_key(create_key(folder), folder), owner="ada", roles=[APPROVE]))
    waiting(ws, people)
    (asked,) = records(ws)
    fields = {**asked.predicate.fields(), "approval": envelope_of(ws, people, "ada2")}
    record = sealed(ws, people, "ada", fields=fields)
    assert "has 1 trusted signatures of different persons" in why_untrusted(ledger_of(ws), record, ())


def test_other_artefacts_or_another_release_than_what_was_approved_are_not_served(ws: Workspace, people: As) -> None:
    waiting(ws, people)
    (asked,) = records(ws)
    fields = {**asked.predicate.fields(), "approval": envelope_of(ws, people, "grace")}
    for changes in (
        {"release": "sha256:" + "0" * 64},
        {"artefacts": {**asked.artefacts, "candidate": "sha256:" + "0" * 64}},
        {"target": "other"},
        {"channel": "staging"},
    ):
        record = sealed(ws, people, "ada", fields=fields, **changes)
        assert "something else" in why_untrusted(ledger_of(ws), record, ())
    record = sealed(ws, people, "ada", fields=fields)
    assert why_untrusted(ledger_of(ws), record, ()) == ""


def test_a_rollback_restores_only_what_was_put_live(ws: Workspace, people: As) -> None:
    """One signature rolls back; it must not put something live that nobody approved."""
    name = waiting(ws, people)
    people("grace")
    done = approve(ws, name)
    for changes in ({"release": "sha256:" + "0" * 64}, {"target": "other"}, {"channel": "staging"}):
        record = sealed(ws, people, "ada", outcome="rollback", restores=done.record, **changes)
        assert "did not put live" in why_untrusted(ledger_of(ws), record, ())
    record = sealed(ws, people, "ada", outcome="rollback", restores=done.record)
    assert why_untrusted(ledger_of(ws), record, ()) == ""


def test_records_of_one_signature_stay_valid_when_more_are_needed_later(tmp_path: Path, people: As) -> None:
    people("ada")
    ws = make_workspace(tmp_path / "ws")
    promote(ws, TARGET)
    pinned = read_pinned_keys(ws.root / "ledger.pub")
    write_pinned_keys(ws.root / "ledger.pub", PinnedKeys(pinned.keys, ((1, 2),)))
    assert resolve(ws, TARGET).sequence == 0
    assert problems_of(ws) == []
    write_pinned_keys(ws.root / "ledger.pub", PinnedKeys(pinned.keys, ((0, 2),)))
    with pytest.raises(PromotionRefused, match="has one signature, where 2 of different persons are needed"):
        resolve(ws, TARGET)


def test_params_ask_for_no_fewer_signatures_than_are_pinned(ws: Workspace, people: As) -> None:
    pinned = read_pinned_keys(ws.root / "ledger.pub")
    write_pinned_keys(ws.root / "ledger.pub", PinnedKeys(pinned.keys, ((0, 3),)))
    set_signatures(ws, 1)
    people("ada")
    assert "waits for 2 more signatures" in promote(ws, TARGET).message


def test_garbage_in_the_place_of_an_approval_stops_nobody(ws: Workspace, people: As) -> None:
    name = waiting(ws, people)
    (asked,) = records(ws)
    folder = ws.root / "ledger" / "approvals" / asked.digest.removeprefix("sha256:")
    folder.mkdir(parents=True)
    people("grace")
    keyid = load_signer(ledger_of(ws).keys).public_key.keyid
    for file in (f"{keyid}.json", "x.json"):
        (folder / file).write_bytes(b'{"payload": "", "payloadType": "x", "signatures": [{"keyid": "a", "sig": ""}]}')
    assert pending(ws, name).approvers == ()
    assert approve(ws, name).outcome == "pass"


def test_an_override_by_hand_with_one_signature_is_not_served(ws: Workspace, people: As) -> None:
    waiting(ws, people)
    record = sealed(ws, people, "ada", outcome="override", fields={})
    assert "where 2 of different persons are needed" in why_untrusted(ledger_of(ws), record, revocations(ledger_of(ws)))


@pytest.mark.parametrize("who", ["grace", "ada"])
def test_an_approver_or_the_author_rejects_and_nobody_approves_it_then(ws: Workspace, people: As, who: str) -> None:
    set_signatures(ws, 3)
    name = waiting(ws, people)
    people("barbara")
    approve(ws, name)
    people(who)
    assert reject(ws, name, "the suite is too old").outcome == "fail"
    newest = records(ws)[0]
    assert (newest.outcome, newest.release) == ("fail", None)
    assert newest.reason == f"rejected by {who.title()}: the suite is too old"
    for person in ("edsger", "grace"):
        people(person)
        with pytest.raises(PromotionRefused, match="ended in fail"):
            approve(ws, name)
    assert live_digest(ws) is None
    assert problems_of(ws) == []


def test_somebody_who_may_not_approve_cannot_reject(ws: Workspace, people: As) -> None:
    name = waiting(ws, people)
    pinned = read_pinned_keys(ws.root / "ledger.pub")
    keys = [with_extras(key, roles=None) for key in pinned.keys]
    write_pinned_keys(ws.root / "ledger.pub", PinnedKeys(tuple(keys), pinned.signatures))
    people("edsger")
    with pytest.raises(PromotionRefused, match="may not approve"):
        reject(ws, name, "no")
    assert pending(ws, name).record.outcome == "pending"


def test_a_rejected_promotion_can_be_asked_for_again(ws: Workspace, people: As) -> None:
    name = waiting(ws, people)
    people("grace")
    assert "rejected by Grace: not on a Friday" in run(ws.root, "reject", name, "--reason", "not on a Friday").stdout
    again = waiting(ws, people)
    assert again != name
    people("grace")
    assert approve(ws, again).outcome == "pass"
