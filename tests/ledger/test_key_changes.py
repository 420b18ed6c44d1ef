"""Keys are pinned, rotated and revoked by records; what a revoked key signed is not relied on."""

import json
from pathlib import Path
from typing import Any

import pytest

from safegene.errors import LedgerError, PromotionRefused, SafegeneError
from safegene.ledger.audit import audit_workspace
from safegene.ledger.key_changes import change_of
from safegene.ledger.keys import create_key, key_ids, load_signer, public_key
from safegene.ledger.live import live_record, revocations
from safegene.ledger.pins import (
    PinnedKeys,
    key_to_json,
    may_approve,
    owner_of,
    read_pinned_keys,
    retired_from,
    with_extras,
    write_pinned_keys,
)
from safegene.ledger.record import EVERY, RecordDraft
from safegene.ledger.snapshot import EVERY as SNAPSHOT_EVERY
from safegene.ledger.snapshot import read_snapshot
from safegene.ledger.trust import trusted_until
from safegene.pipeline.keys import pin, pinned_keys, require, revoke, rotate
from safegene.pipeline.stages.promote import promote, resolve, rollback
from safegene.pipeline.stages.promote import revoke as revoke_digest
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest
from tests.factories.approvals import As
from tests.factories.ledger import (
    TARGET,
    attempt,
    ledger_of,
    make_target,
    make_workspace,
    problems_of,
    records,
)


@pytest.fixture
def ws(tmp_path: Path, people: As) -> Workspace:
    """A workspace of Ada, whose key is pinned; one promotion."""
    people("ada")
    ws = make_workspace(tmp_path / "ws")
    promote(ws, TARGET)
    return ws


def key_of(folder: Path) -> str:
    (keyid,) = key_ids(folder)
    return keyid


def file_of(folder: Path) -> str:
    """A file with the public key of a new key in a folder, as its owner sends it."""

    create_key(folder)
    path = folder / "public.json"
    path.write_text(json.dumps(key_to_json(public_key(key_of(folder), folder))))
    return str(path)


def test_a_key_is_pinned_by_a_record_and_signs_from_then_on(ws: Workspace, people: As, tmp_path: Path) -> None:
    record = pin(ws, file_of(tmp_path / "grace"), owner="Grace", approver=True)
    assert (record.outcome, record.target) == ("keys", EVERY)
    new = ledger_of(ws).keys[-1]
    assert (new.keyid, owner_of(new), may_approve(new)) == (key_of(tmp_path / "grace"), "Grace", True)
    assert problems_of(ws) == []
    people("grace")
    attempt(ws, alpha=2.0)
    assert records(ws)[0].signers == (new.keyid,)
    assert resolve(ws, TARGET).sequence == 2
    assert problems_of(ws) == []


def test_the_owner_of_a_pinned_key_is_named_by_a_record(ws: Workspace, tmp_path: Path) -> None:
    pin(ws, key_of(tmp_path / "ada")[:12], owner="Ada")
    (key,) = pinned_keys(ws).keys
    assert (owner_of(key), may_approve(key)) == ("Ada", False)
    pin(ws, key_of(tmp_path / "ada"), approver=True)
    assert [may_approve(each) for each in pinned_keys(ws).keys] == [True]
    assert problems_of(ws) == []
    with pytest.raises(LedgerError, match="expected a change of what is pinned"):
        pin(ws, key_of(tmp_path / "ada"))


def test_only_a_pinned_key_pins(ws: Workspace, people: As, tmp_path: Path) -> None:
    before = pinned_keys(ws)
    file = file_of(tmp_path / "mallory")
    people("mallory")
    with pytest.raises(LedgerError, match="expected the private key of one of"):
        pin(ws, file)
    assert pinned_keys(ws) == before
    assert len(records(ws)) == 1


def test_a_key_that_no_record_pinned_is_named(ws: Workspace, people: As, tmp_path: Path) -> None:
    pin(ws, file_of(tmp_path / "grace"), owner="Grace")
    foreign = public_key(create_key(tmp_path / "mallory"), tmp_path / "mallory")
    pinned = pinned_keys(ws)
    write_pinned_keys(ws.root / "ledger.pub", PinnedKeys((*pinned.keys, foreign)))
    said = f"expected ledger.pub to pin what record 1 says, got other content: {foreign.keyid[:12]}.. too many"
    assert said in "\n".join(problems_of(ws))
    with pytest.raises(LedgerError, match="too many"):
        pin(ws, file_of(tmp_path / "edsger"))
    write_pinned_keys(ws.root / "ledger.pub", PinnedKeys(pinned.keys[:1]))
    assert f"{pinned.keys[1].keyid[:12]}.. missing" in "\n".join(problems_of(ws))
    write_pinned_keys(ws.root / "ledger.pub", PinnedKeys(pinned.keys, ((0, 2),)))
    assert "other numbers of signatures" in "\n".join(problems_of(ws))


def test_a_key_that_pins_itself_is_named(ws: Workspace, people: As, tmp_path: Path) -> None:
    pin(ws, key_of(tmp_path / "ada"), owner="Ada")
    before = pinned_keys(ws)
    foreign = public_key(create_key(tmp_path / "mallory"), tmp_path / "mallory")
    write_pinned_keys(ws.root / "ledger.pub", PinnedKeys((*before.keys, foreign)))
    people("mallory")
    ledger = ledger_of(ws)
    change: Any = change_of(records(ws)[0])
    own = change.model_copy(update={"entry": {"keyid": foreign.keyid, **foreign.to_dict()}, "before": before.to_json()})
    fields = {"change": own.model_dump(mode="json", by_alias=True)}
    ledger.append(RecordDraft("keys", EVERY, EVERY, "mine", {}, fields), load_signer(ledger.keys))
    said = "expected record 2, which changes the pinned keys, to be signed by a key that was pinned before it"
    assert said in "\n".join(problems_of(ws))


def test_a_rotated_key_signs_no_more_and_what_it_signed_stays_valid(ws: Workspace, people: As, tmp_path: Path) -> None:
    pin(ws, key_of(tmp_path / "ada"), owner="Ada", approver=True)
    old = pinned_keys(ws).keys[0]
    record = rotate(ws)
    retired, new = pinned_keys(ws).keys
    assert (retired.keyid, retired_from(retired)) == (old.keyid, record.sequence + 1)
    assert (owner_of(new), may_approve(new), retired_from(new)) == ("Ada", True, None)
    assert load_signer(ledger_of(ws).keys).public_key.keyid == new.keyid
    assert resolve(ws, TARGET).sequence == 0
    assert problems_of(ws) == []
    attempt(ws, alpha=2.0)
    assert resolve(ws, TARGET).sequence == 3
    assert problems_of(ws) == []


def test_a_record_that_a_retired_key_signed_too_late_is_not_relied_on(
    ws: Workspace, people: As, tmp_path: Path
) -> None:
    (old,) = pinned_keys(ws).keys
    stale = PinnedKeys(pinned_keys(ws).keys)
    rotate(ws)
    good = pinned_keys(ws)
    new_signer = load_signer(good.keys)
    write_pinned_keys(ws.root / "ledger.pub", PinnedKeys((*stale.keys, good.keys[1])))  # the thief's clone
    ledger = ledger_of(ws)
    thief = load_signer((old,))
    assert thief.public_key.keyid != new_signer.public_key.keyid
    from safegene.ledger.promotion import record_promotion
    from safegene.ledger.rules import PromotionClaim

    make_target(ws, alpha=5.0)
    adapter = ws.candidate(TARGET) / "adapter_model.safetensors"
    manifest = read_manifest(ws.candidate(TARGET))
    claim = PromotionClaim(
        TARGET,
        "pass",
        "r",
        {"candidate": manifest.digest},
        {},
        {"candidate/adapter_model.safetensors": (adapter, manifest.files["adapter_model.safetensors"])},
        measured_against=resolve(ws, TARGET).release,
    )
    record_promotion(ledger, thief, claim, "production")
    write_pinned_keys(ws.root / "ledger.pub", good)
    with pytest.raises(PromotionRefused, match=f"signed by the key {old.keyid[:12]}.., which is not trusted from"):
        resolve(ws, TARGET)
    assert "record 2 (pass for sentiment) is signed by the key" in "\n".join(audit_workspace(ws).notes)


@pytest.mark.parametrize("since", [None, "2"])
def test_what_a_revoked_key_signed_is_not_relied_on_from_a_record_on(
    ws: Workspace, people: As, tmp_path: Path, since: str | None
) -> None:
    pin(ws, file_of(tmp_path / "grace"), owner="Grace")
    people("grace")
    attempt(ws, alpha=2.0)  # record 2
    people("ada")
    grace = key_of(tmp_path / "grace")
    record, touched = revoke(ws, grace, "the laptop was stolen", since=since)
    assert (record.outcome, record.revokes) == ("revocation", f"sha256:{grace}")
    assert [each.sequence for each in touched] == ([2] if since else [])
    (key,) = [each for each in pinned_keys(ws).keys if each.keyid == grace]
    assert retired_from(key) == (2 if since else record.sequence)
    if since is None:
        assert resolve(ws, TARGET).sequence == 2
    else:
        with pytest.raises(PromotionRefused, match="which is not trusted from record 2 on"):
            resolve(ws, TARGET)
        assert "record 2 (pass for sentiment) is signed by the key" in "\n".join(audit_workspace(ws).notes)
        rollback(ws, TARGET)
        assert resolve(ws, TARGET).sequence == 4
    people("grace")
    with pytest.raises(LedgerError, match="expected the private key of one of"):
        promote(ws, TARGET)
    assert problems_of(ws) == []


def test_a_revocation_on_the_chain_holds_where_the_file_is_not_new_yet(
    ws: Workspace, people: As, tmp_path: Path
) -> None:
    pin(ws, file_of(tmp_path / "grace"), owner="Grace")
    before = pinned_keys(ws)
    people("grace")
    attempt(ws, alpha=2.0)
    people("ada")
    revoke(ws, key_of(tmp_path / "grace"), "stolen", since="2")
    write_pinned_keys(ws.root / "ledger.pub", before)
    with pytest.raises(PromotionRefused, match="which is not trusted from record 2 on"):
        resolve(ws, TARGET)
    assert "expected ledger.pub to pin what record 3 says" in "\n".join(problems_of(ws))


def test_a_stolen_key_takes_trust_away_and_restores_none(ws: Workspace, people: As, tmp_path: Path) -> None:
    """A thief's revocations void nothing until ``ledger.pub`` says since when the key was stolen."""
    pin(ws, file_of(tmp_path / "grace"), owner="Grace")
    ada, grace = key_of(tmp_path / "ada"), key_of(tmp_path / "grace")
    vector = read_manifest(ws.vector).digest
    revoke_digest(ws, vector, "poisoned")
    before = pinned_keys(ws)
    people("grace")
    revoke(ws, ada, "a thief's lie", since="0")
    write_pinned_keys(ws.root / "ledger.pub", before)
    with pytest.raises(PromotionRefused, match="poisoned"):  # Ada's revocation holds
        resolve(ws, TARGET)
    ledger = ledger_of(ws)
    late = [each for each in before.keys if each.keyid == grace]

    assert trusted_until(ledger.keys, revocations(ledger)) == {ada: 0}
    voided = (*(each for each in before.keys if each.keyid == ada), with_extras(late[0], until=2))
    write_pinned_keys(ws.root / "ledger.pub", PinnedKeys(voided))
    ledger = ledger_of(ws)
    assert trusted_until(ledger.keys, revocations(ledger)) == {grace: 2}


def test_what_a_thief_revoked_is_void_once_the_file_says_since_when(ws: Workspace, people: As, tmp_path: Path) -> None:
    pin(ws, file_of(tmp_path / "grace"), owner="Grace")
    people("grace")
    revoke_digest(ws, read_manifest(ws.vector).digest, "a thief's lie")
    with pytest.raises(PromotionRefused, match="a thief's lie"):
        resolve(ws, TARGET)
    people("ada")
    revoke(ws, key_of(tmp_path / "grace"), "stolen", since="2")
    assert resolve(ws, TARGET).sequence == 0


def test_the_last_key_and_the_signer_are_not_revoked(ws: Workspace, tmp_path: Path) -> None:
    ada = key_of(tmp_path / "ada")
    for name in (ada, ada[:8]):
        with pytest.raises(LedgerError, match="expected another key to sign") as caught:
            revoke(ws, name, "r")
        assert "safegene keys pin" in caught.value.remedy
    for name in (ada[:7], "nothing", "0" * 64):
        with pytest.raises(LedgerError, match="expected the id of a pinned key"):
            revoke(ws, name, "r")
    assert len(records(ws)) == 1


def test_since_must_be_a_record(ws: Workspace, tmp_path: Path) -> None:
    pin(ws, file_of(tmp_path / "grace"))
    with pytest.raises(LedgerError, match="expected the number or the digest of a record, got '77'"):
        revoke(ws, key_of(tmp_path / "grace"), "r", since="77")


def test_required_signatures_are_pinned_where_enough_persons_are(ws: Workspace, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="expected the keys of at least 2 persons"):
        require(ws, 2)
    pin(ws, key_of(tmp_path / "ada"), owner="Ada")
    pin(ws, file_of(tmp_path / "ada2"), owner="ada", approver=True)  # the same person
    with pytest.raises(LedgerError, match="got those of 1"):
        require(ws, 2)
    pin(ws, file_of(tmp_path / "grace"), owner="Grace", approver=True)
    record = require(ws, 2)
    assert pinned_keys(ws).signatures == ((record.sequence + 1, 2),)
    assert resolve(ws, TARGET).sequence == 0
    require(ws, 1)
    assert pinned_keys(ws).signatures == ((record.sequence + 1, 2), (record.sequence + 2, 1))
    assert problems_of(ws) == []


def test_a_malformed_change_on_the_chain_is_named(ws: Workspace) -> None:
    ledger = ledger_of(ws)
    signer = load_signer(ledger.keys)
    for change in (
        {"class": "keys"},
        {"class": "keys", "action": "pin", "before": {"keys": []}},
        {"class": "keys", "action": "pin", "before": pinned_keys(ws).to_json(), "entry": {"keyid": "x"}},
    ):
        ledger.append(RecordDraft("keys", EVERY, EVERY, "r", {}, {"change": change}), signer)
    found = problems_of(ws)
    assert len([problem for problem in found if "field change of record" in problem]) == 3


def test_a_ledger_without_changes_of_keys_has_no_problem(ws: Workspace, tmp_path: Path) -> None:
    foreign = public_key(create_key(tmp_path / "x"), tmp_path / "x")
    write_pinned_keys(ws.root / "ledger.pub", PinnedKeys((*pinned_keys(ws).keys, foreign)))
    assert problems_of(ws) == []


def test_a_failed_change_writes_nothing(ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (ws.root / "ledger" / "tip").write_text("{}")
    before = read_pinned_keys(ws.root / "ledger.pub")
    with pytest.raises(SafegeneError):
        pin(ws, file_of(tmp_path / "grace"))
    assert read_pinned_keys(ws.root / "ledger.pub") == before


def test_a_snapshot_by_a_retired_key_is_passed_over(ws: Workspace, tmp_path: Path) -> None:
    """Whoever stole a key that was retired since must not state what an old stretch of the chain says."""
    ledger = ledger_of(ws)
    signer = load_signer(ledger.keys)
    for number in range(SNAPSHOT_EVERY):
        ledger.append(RecordDraft("fail", "other", "production", str(number), {}, {}), signer)
    live_record(ledger, TARGET, "production", signer=signer)
    (record,) = [each for each in ledger.walk() if each.sequence == SNAPSHOT_EVERY]
    assert read_snapshot(ledger, record)
    (key,) = pinned_keys(ws).keys
    new = public_key(create_key(tmp_path / "new"), tmp_path / "new")
    write_pinned_keys(ws.root / "ledger.pub", PinnedKeys((with_extras(key, until=SNAPSHOT_EVERY + 1), new)))
    assert read_snapshot(ledger_of(ws), record) is None
    assert resolve(ws, TARGET).sequence == 0
