"""A ledger under attack: records edited, deleted, reordered, re-signed; pointers moved; writers killed."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from safegene.errors import DigestMismatch, LedgerError, SafegeneError
from safegene.ledger.audit import audit_workspace
from safegene.ledger.chain import Ledger
from safegene.ledger.keys import create_key, load_signer, read_public_keys, write_public_key
from safegene.ledger.live import live_record
from safegene.ledger.pointers import SEEN, record_key
from safegene.ledger.record import PAYLOAD, Record, RecordDraft, unseal
from safegene.pipeline.stages.promote import (
    pin_incumbent,
    promote,
    promote_attempt,
    resolve,
    revoke,
    rollback,
)
from safegene.workspace.digest import canonical_json, digest_bytes, digest_json
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest
from tests.factories.ledger import (
    TARGET,
    attempt,
    flip_byte,
    ledger_of,
    make_target,
    make_verdict,
    make_workspace,
    problems_of,
    records,
)


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """Three records: a promotion, a refusal, a promotion of something better."""
    ws = make_workspace(tmp_path / "ws")
    promote_attempt(ws, TARGET)
    attempt(ws, alpha=2.0, outcome="fail")
    attempt(ws, alpha=3.0, outcome="pass")
    assert audit_workspace(ws).problems == ()
    return ws


def chain_of(ws: Workspace) -> list[Record]:
    return list(reversed(records(ws)))


def file_of(ws: Workspace, record: Record) -> Path:
    return ws.root / "ledger" / record_key(record.digest)


def problems(ws: Workspace) -> str:
    return "\n".join(problems_of(ws))


@pytest.mark.parametrize("sequence", [0, 1, 2])
def test_an_edited_record_is_named(ws: Workspace, sequence: int) -> None:
    file = file_of(ws, chain_of(ws)[sequence])
    flip_byte(file, at=200)
    assert f"the record was edited, in {file}" in problems(ws)


@pytest.mark.parametrize("sequence", [0, 1, 2])
def test_a_deleted_record_is_named(ws: Workspace, sequence: int) -> None:
    file = file_of(ws, chain_of(ws)[sequence])
    file.unlink()
    assert f"expected the record {file}, got none: it was deleted" in problems(ws)


def test_reordered_records_are_named(ws: Workspace) -> None:
    one, two, _ = (file_of(ws, record) for record in chain_of(ws))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    assert str(two) in problems(ws)


def test_a_forged_record_of_the_same_bytes_but_another_spelling_is_refused(ws: Workspace) -> None:
    file = file_of(ws, chain_of(ws)[1])
    file.write_bytes(json.dumps(json.loads(file.read_bytes()), indent=1).encode())
    assert str(file) in problems(ws)


def test_a_record_of_an_unknown_key_is_refused(ws: Workspace, tmp_path: Path) -> None:
    write_public_key(create_key(tmp_path / "other"), tmp_path / "other.pub", tmp_path / "other")
    foreign = read_public_keys(tmp_path / "other.pub")
    mixed = Ledger(ledger_of(ws).store, (*ledger_of(ws).keys, *foreign))
    forged = mixed.append(
        RecordDraft("pass", TARGET, "production", "trust me", {}, {}, release=digest_json("evil")),
        load_signer(foreign, tmp_path / "other"),
    )
    mixed.publish(forged, mixed.pointer("production", TARGET))
    assert "expected a signature by a pinned key" in problems(ws)
    with pytest.raises(LedgerError, match="pinned key"):
        resolve(ws, TARGET)


def never_seen(ws: Workspace) -> None:
    """As a reader who has not been here before, on a machine that has not either."""
    (ws.root / SEEN).unlink()
    shutil.rmtree(os.environ["SAFEGENE_STATE"])


def test_a_chain_cut_off_at_its_end_is_found(ws: Workspace) -> None:
    first = chain_of(ws)[0]
    never_seen(ws)
    tip = ws.root / "ledger" / "tip"
    tip.write_text(json.dumps({"record": first.digest, "sequence": 0}))
    found = problems(ws)
    assert "expected record 2 on the chain, got a chain without it" in found
    assert f"channels/production/{TARGET}" in found


def test_a_deleted_tip_is_not_a_new_ledger(ws: Workspace) -> None:
    never_seen(ws)
    (ws.root / "ledger" / "tip").unlink()
    assert "expected the tip of the chain, got none although there are records" in problems(ws)
    with pytest.raises(LedgerError, match="tip"):
        promote(ws, TARGET)


@pytest.mark.parametrize("how", ["set back by one", "set back whole", "gone", "exchanged"])
def test_a_ledger_without_the_record_seen_last_is_refused(ws: Workspace, tmp_path: Path, how: str) -> None:
    ledger, before = ws.root / "ledger", tmp_path / "before"
    shutil.copytree(ledger, before)
    attempt(ws, alpha=4.0, outcome="fail")
    if how == "set back by one":
        shutil.copyfile(before / "tip", ledger / "tip")
        next(p for p in (ledger / "records").iterdir() if not (before / "records" / p.name).exists()).unlink()
    else:
        shutil.rmtree(ledger)
    if how == "set back whole":
        shutil.copytree(before, ledger)
    if how == "exchanged":
        other = make_workspace(tmp_path / "other")
        promote_attempt(other, TARGET)
        shutil.copytree(other.root / "ledger", ledger)
        shutil.copyfile(other.root / "ledger.pub", ws.root / "ledger.pub")
    assert "seen before" in problems(ws)
    with pytest.raises(LedgerError, match="seen before"):
        resolve(ws, TARGET)
    with pytest.raises(LedgerError, match="seen before"):
        promote(ws, TARGET)


@pytest.mark.parametrize("seen", [True, False])
def test_setting_the_tip_back_does_not_undo_a_revocation(ws: Workspace, seen: bool) -> None:
    tip = ws.root / "ledger" / "tip"
    before = tip.read_bytes()
    revoke(ws, read_manifest(ws.vector).digest, "poisoned")
    tip.write_bytes(before)
    if not seen:
        never_seen(ws)
    with pytest.raises(SafegeneError, match="seen before" if seen else "poisoned"):
        resolve(ws, TARGET)
    assert "expected revocation 3 on the chain" in problems(ws)


def test_a_pointer_set_back_behind_a_rollback_is_not_served(ws: Workspace) -> None:
    pointer = ws.root / "ledger" / "channels" / "production" / TARGET
    before = pointer.read_bytes()
    rollback(ws, TARGET)
    pointer.write_bytes(before)
    with pytest.raises(LedgerError, match="which rolled .* back on production"):
        resolve(ws, TARGET)
    assert f"roll back {TARGET} again" in problems(ws)
    assert rollback(ws, TARGET).outcome == "rollback"
    assert resolve(ws, TARGET)
    assert problems(ws) == ""


def test_a_pointer_to_a_promotion_that_lost_is_refused(ws: Workspace) -> None:
    ledger = ledger_of(ws)
    signer, last = load_signer(ledger.keys), chain_of(ws)[-1]
    lost = ledger.append(
        RecordDraft("pass", TARGET, "production", "r", last.artefacts, {}, release=last.release), signer
    )
    ledger.append(RecordDraft("superseded", TARGET, "production", "r", {}, {}, replaces=lost.digest), signer)
    ledger.publish(lost, ledger.pointer("production", TARGET))
    assert "was superseded" in problems(ws)
    with pytest.raises(LedgerError, match="was superseded"):
        resolve(ws, TARGET)


def test_a_planted_link_to_a_folder_is_found(ws: Workspace, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (ws.candidate(TARGET) / "extra").symlink_to(tmp_path / "outside")
    assert "got also ['extra']" in problems(ws)
    release = Path(resolve(ws, TARGET).path)
    (release / "candidate" / "extra").symlink_to(tmp_path / "outside")
    with pytest.raises(DigestMismatch, match="candidate/extra"):
        resolve(ws, TARGET)


def test_a_planted_record_of_nonsense_is_named(ws: Workspace) -> None:
    data = canonical_json({"payload": 5, "payloadType": "x", "signatures": []})
    file = ws.root / "ledger" / record_key(digest_bytes(data))
    file.write_bytes(data)
    assert str(file) in problems(ws)


def test_a_tip_that_lies_about_its_number_is_found(ws: Workspace) -> None:
    last = chain_of(ws)[-1]
    (ws.root / "ledger" / "tip").write_text(json.dumps({"record": last.digest, "sequence": 7}))
    assert "expected record number 7" in problems(ws)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("off the chain", lambda chain: {"record": digest_json("x"), "release": digest_json("y"), "sequence": 2}),
        ("a refusal", lambda chain: {"record": chain[1].digest, "release": chain[0].release, "sequence": 1}),
        ("another release", lambda chain: {"record": chain[2].digest, "release": chain[0].release, "sequence": 2}),
        ("no pointer", lambda chain: {"record": 5}),
    ],
)
def test_a_forged_pointer_serves_nothing(
    ws: Workspace, name: str, content: Callable[[list[Record]], dict[str, object]]
) -> None:
    path = ws.root / "ledger" / "channels" / "production" / TARGET
    path.write_text(json.dumps(content(chain_of(ws))))
    assert str(path) in problems(ws), name
    with pytest.raises(LedgerError):
        resolve(ws, TARGET)


def test_a_pointer_copied_to_another_target_or_channel_serves_nothing(ws: Workspace) -> None:
    channels = ws.root / "ledger" / "channels"
    pointer = (channels / "production" / TARGET).read_bytes()
    (channels / "production" / "topic").write_bytes(pointer)
    (channels / "staging").mkdir()
    (channels / "staging" / TARGET).write_bytes(pointer)
    assert "production/topic" in problems(ws)
    assert f"staging/{TARGET}" in problems(ws)
    with pytest.raises(LedgerError):
        resolve(ws, "topic")
    with pytest.raises(LedgerError):
        resolve(ws, TARGET, channel="staging")


def test_a_pointer_set_back_to_an_earlier_promotion_is_found(ws: Workspace) -> None:
    first = chain_of(ws)[0]
    path = ws.root / "ledger" / "channels" / "production" / TARGET
    path.write_text(json.dumps({"record": first.digest, "release": first.release, "sequence": 0}))
    expected = f"expected a pointer to record 2, which promoted {TARGET} on production, got a pointer to record 0"
    assert expected in problems(ws)
    with pytest.raises(LedgerError, match=expected) as refused:
        resolve(ws, TARGET)
    assert refused.value.remedy == f"`safegene promote {TARGET}` again moves the pointer on"
    assert promote(ws, TARGET).message.endswith("the interrupted promotion is complete now")
    assert problems(ws) == ""


def test_a_ledger_of_another_schema_is_refused(ws: Workspace) -> None:
    from securesystemslib.dsse import Envelope

    ledger = ledger_of(ws)
    signer = load_signer(ledger.keys)
    statements: tuple[object, ...] = (
        {},
        [],
        {"_type": "https://in-toto.io/Statement/v1", "predicateType": "other", "predicate": {}},
    )
    for statement in statements:
        envelope = Envelope(canonical_json(statement), PAYLOAD, {})
        envelope.sign(signer)
        data = canonical_json(envelope.to_dict())
        with pytest.raises(LedgerError, match="in here"):
            unseal(data, ledger.keys, where="here")


KILLED = """
import os, sys
from pathlib import Path
from safegene.ledger import store
from safegene.workspace.layout import Workspace
from safegene.pipeline.stages.promote import promote_attempt

where, prefix = sys.argv[1], sys.argv[2]
whole = store.LocalStore._put

def killed(self, key, data, *, expected):
    if where == "before" and key.startswith(prefix):
        os._exit(9)
    etag = whole(self, key, data, expected=expected)
    if where == "after" and key.startswith(prefix):
        os._exit(9)
    return etag

store.LocalStore._put = killed
ws = Workspace(Path(sys.argv[3]))
promote_attempt(ws, sys.argv[4])
"""


@pytest.mark.parametrize(
    ("where", "prefix", "orphans", "linked"),
    [
        ("after", "releases/", 0, 3),
        ("before", "records/", 0, 3),
        ("after", "records/", 1, 3),
        ("after", "tip", 0, 4),
        ("after", "channels/", 0, 4),
    ],
)
def test_a_promoter_killed_anywhere_leaves_no_half_promotion(
    ws: Workspace, where: str, prefix: str, orphans: int, linked: int
) -> None:
    before = live_record(ledger_of(ws), TARGET, "production")
    assert before
    make_target(ws, alpha=4.0)
    pin_incumbent(ws, TARGET)
    make_verdict(ws)
    command = [sys.executable, "-c", KILLED, where, prefix, str(ws.root), TARGET]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 9, done.stderr

    now = live_record(ledger_of(ws), TARGET, "production")
    assert now
    linked_already = prefix in ("tip", "channels/")
    assert (now.release != before.release) == linked_already
    assert len(chain_of(ws)) == linked
    audit = audit_workspace(ws)
    assert len(audit.notes) == orphans
    interrupted = [problem for problem in audit.problems if "was interrupted" in problem]
    assert len(interrupted) == (1 if prefix == "tip" else 0)
    if prefix == "tip":
        with pytest.raises(LedgerError, match="was interrupted"):
            resolve(ws, TARGET)

    assert promote_attempt(ws, TARGET) == "pass"
    settled = live_record(ledger_of(ws), TARGET, "production")
    assert settled
    assert settled.release != before.release
    assert resolve(ws, TARGET).release == settled.release
    assert audit_workspace(ws).problems == ()
    assert len(chain_of(ws)) == 4


def test_nothing_that_is_refused_moves_a_pointer(ws: Workspace) -> None:
    path = ws.root / "ledger" / "channels" / "production" / TARGET
    before = path.read_bytes()
    flip_byte(ws.vector / "vector.safetensors")
    with pytest.raises(SafegeneError):
        promote_attempt(ws, TARGET)
    assert path.read_bytes() == before
    assert chain_of(ws)[-1].outcome == "error"
