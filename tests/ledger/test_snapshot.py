"""The state of a chain, read from a snapshot and the records after it, is what all records say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from securesystemslib.dsse import Envelope

from safegene.ledger.chain import Ledger
from safegene.ledger.keys import create_key, load_signer, read_public_keys, write_public_key
from safegene.ledger.live import live_record, revocations
from safegene.ledger.pointers import Tip, record_key
from safegene.ledger.record import RecordDraft
from safegene.ledger.snapshot import EVERY, PAYLOAD, attempts_on, read_snapshot, read_state, write_snapshot
from safegene.ledger.store import LocalStore
from safegene.workspace.digest import canonical_json, digest_json, strict_json
from tests.factories.ledger import ledger_of, make_workspace, problems_of

TARGETS = ("t", "u")


class Counted(LocalStore):
    """A store that counts what is read."""

    reads: list[str]

    def get(self, key: str) -> tuple[bytes, str]:
        Counted.reads.append(key)
        return super().get(key)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A ledger without a memory: a reader that meets it for the first time."""
    write_public_key(create_key(tmp_path / "keys"), tmp_path / "ledger.pub", tmp_path / "keys")
    Counted.reads = []
    return Ledger(Counted(tmp_path / "ledger"), read_public_keys(tmp_path / "ledger.pub"))


def grow(ledger: Ledger, keys: Path, records: int) -> None:
    """Promotions of two targets, refusals and a revocation, each writer storing the snapshot that is due."""
    signer = load_signer(ledger.keys, keys)
    tip = ledger.tip()
    start = tip.content.sequence + 1 if tip else 0
    for number in range(start, start + records):
        target = TARGETS[number % 2]
        live = live_record(ledger, target, "production", signer=signer)
        artefacts = {"target": digest_json(target), "candidate": digest_json(number // 2 % 20)}
        fields = {"model": {"digest": digest_json(target)}}
        draft = RecordDraft("fail", target, "production", str(number), artefacts, fields)
        if number % 3 == 0:
            replaces, release = live.record.digest if live else None, digest_json(number)
            draft = replace(draft, outcome="pass", release=release, replaces=replaces)
        if number == 7:
            draft = RecordDraft("revocation", "*", "*", "bad", {}, {}, revokes=digest_json("bad"))
        record = ledger.append(draft, signer)
        if record.release:
            ledger.publish(record, live.pointer if live else None)


def said(ledger: Ledger) -> tuple[object, ...]:
    reading = read_state(ledger)
    assert reading
    tried = {target: attempts_on(ledger, reading, digest_json(target)) for target in TARGETS}
    now = reading.now
    return now.ledger, reading.newest.digest, now.live, now.last, revocations(ledger, reading), tried


def without_snapshots(ledger: Ledger) -> Ledger:
    class Bare(LocalStore):
        def get(self, key: str) -> tuple[bytes, str]:
            return super().get(key.replace("snapshots/", "none/"))

    return Ledger(Bare(Path(ledger.store.uri)), ledger.keys)


@pytest.mark.parametrize("records", [1, EVERY, EVERY + 1, EVERY + 2, 2 * EVERY + 1, 3 * EVERY + 5])
def test_a_snapshot_and_the_records_after_it_say_what_all_records_say(
    ledger: Ledger, tmp_path: Path, records: int
) -> None:
    grow(ledger, tmp_path / "keys", records)
    assert said(ledger) == said(without_snapshots(ledger))
    assert len(ledger.records("snapshots")) == max(0, (records - 2) // EVERY)


def test_what_is_read_does_not_grow_with_the_chain(ledger: Ledger, tmp_path: Path) -> None:
    reads = []
    for _ in range(5):
        grow(ledger, tmp_path / "keys", 2 * EVERY)
        Counted.reads.clear()
        live_record(ledger, "t", "production")
        reads.append(sum(key.startswith("records/") for key in Counted.reads))
    assert max(reads[1:]) <= EVERY + 4
    assert reads[1:] == [reads[1]] * 4


def test_a_missing_snapshot_is_made_by_the_next_writer(ledger: Ledger, tmp_path: Path) -> None:
    grow(ledger, tmp_path / "keys", EVERY + 2)
    (snapshot,) = ledger.records("snapshots")
    file = tmp_path / "ledger" / record_key(snapshot, "snapshots")
    before = file.read_bytes()
    file.unlink()
    grow(ledger, tmp_path / "keys", 1)
    assert strict_json(file.read_bytes(), where="")["payload"] == strict_json(before, where="")["payload"]


def forged(ledger: Ledger, file: Path, keys: Path, **changes: object) -> None:
    """A snapshot with changes, signed by the first key of a folder."""
    envelope = Envelope.from_dict(strict_json(file.read_bytes(), where=""))
    content = json.loads(envelope.payload) | changes
    again = Envelope(canonical_json(content), PAYLOAD, {})
    pinned = read_public_keys(keys.with_suffix(".pub"))
    again.sign(load_signer(pinned, keys))
    file.write_bytes(canonical_json(again.to_dict()))


@pytest.fixture
def snapshot(ledger: Ledger, tmp_path: Path) -> Path:
    """The file of the newest snapshot, with a revocation below it."""
    grow(ledger, tmp_path / "keys", EVERY + 2)
    (snapshot,) = ledger.records("snapshots")
    return tmp_path / "ledger" / record_key(snapshot, "snapshots")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"payload": 5, "payloadType": "x", "signatures": []}'])
def test_a_malformed_snapshot_is_passed_over(
    ledger: Ledger, snapshot: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    expected = said(ledger)
    snapshot.write_bytes(content)
    assert said(ledger) == expected
    assert f"in {snapshot}: it is passed over" in caplog.text


def test_a_snapshot_that_no_pinned_key_signed_hides_no_revocation(
    ledger: Ledger, snapshot: Path, tmp_path: Path
) -> None:
    expected = said(ledger)
    write_public_key(create_key(tmp_path / "other"), tmp_path / "other.pub", tmp_path / "other")
    forged(ledger, snapshot, tmp_path / "other", revocations=[], live={}, last={})
    assert said(ledger) == expected
    assert [revoked.reason for revoked in revocations(ledger)] == ["bad"]


def test_a_snapshot_of_another_record_is_passed_over(ledger: Ledger, snapshot: Path, tmp_path: Path) -> None:
    content = snapshot.read_bytes()
    grow(ledger, tmp_path / "keys", EVERY)
    expected = said(ledger)
    for digest in ledger.records("snapshots"):
        (tmp_path / "ledger" / record_key(digest, "snapshots")).write_bytes(content)
    newest = max(map(ledger.read, ledger.records("snapshots")), key=lambda record: record.sequence)
    assert read_snapshot(ledger, newest) is None
    assert said(ledger) == expected


def test_a_revocation_is_read_although_a_signed_snapshot_leaves_it_out(
    ledger: Ledger, snapshot: Path, tmp_path: Path
) -> None:
    """Its copy is in the store, and an audit names the snapshot."""
    (tmp_path / "keys.pub").write_bytes((tmp_path / "ledger.pub").read_bytes())
    forged(ledger, snapshot, tmp_path / "keys", revocations=[])
    assert [revoked.reason for revoked in revocations(ledger)] == ["bad"]


@pytest.mark.parametrize("changes", [{"revocations": []}, {"live": {}}, {"last": {}}, {"attempts": {}}])
def test_an_audit_names_a_signed_snapshot_that_leaves_something_out(tmp_path: Path, changes: dict[str, object]) -> None:
    ws = make_workspace(tmp_path / "ws", keys=tmp_path / "keys")
    ledger = ledger_of(ws)
    grow(ledger, tmp_path / "keys", EVERY + 2)
    (ledger_snapshot,) = ledger.records("snapshots")
    file = ws.root / "ledger" / record_key(ledger_snapshot, "snapshots")
    sound = file.read_bytes()
    assert not [problem for problem in problems_of(ws) if "snapshot" in problem]
    (tmp_path / "keys.pub").write_bytes((ws.root / "ledger.pub").read_bytes())
    forged(ledger, file, tmp_path / "keys", **changes)
    (name,) = changes
    assert f"expected a snapshot that says what the records say, got another {name}, in {file}" in problems_of(ws)
    file.write_bytes(sound)
    file.rename(file.with_name(f"{'0' * 64}.json"))
    assert "got a snapshot of a chain with it" in "\n".join(problems_of(ws))


def test_a_state_up_to_a_record_leaves_later_ones_out(ledger: Ledger, tmp_path: Path) -> None:
    grow(ledger, tmp_path / "keys", 6)
    third = next(record for record in ledger.walk() if record.sequence == 3)
    reading = read_state(ledger, at=Tip(record=third.digest, sequence=3))
    assert reading
    assert reading.newest == third


def test_a_snapshot_of_nothing_new_is_not_written(ledger: Ledger, tmp_path: Path) -> None:
    signer = load_signer(ledger.keys, tmp_path / "keys")
    write_snapshot(ledger, read_state(ledger), signer)
    grow(ledger, tmp_path / "keys", 3)
    write_snapshot(ledger, read_state(ledger), signer)
    assert ledger.records("snapshots") == ()
