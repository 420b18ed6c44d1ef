"""What a machine remembers of a ledger: it never falls behind, and is never ahead of a chain that is sound."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from safegene.errors import LedgerError
from safegene.ledger.chain import Ledger
from safegene.ledger.keys import create_key, load_signer, read_public_keys, write_public_key
from safegene.ledger.memory import Anchor, Memory, RevokedDigest
from safegene.ledger.record import RecordDraft
from safegene.ledger.snapshot import read_state
from safegene.ledger.store import LocalStore
from safegene.workspace.digest import digest_json

HERE, THERE = digest_json("here"), digest_json("there")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    write_public_key(create_key(tmp_path / "keys"), tmp_path / "ledger.pub", tmp_path / "keys")
    memory = Memory(tmp_path / "state")
    return Ledger(LocalStore(tmp_path / "ledger"), read_public_keys(tmp_path / "ledger.pub"), memory=memory)


def append(ledger: Ledger, tmp_path: Path) -> None:
    """A record, and what its writer remembers."""
    ledger.append(RecordDraft("fail", "t", "production", "r", {}, {}), load_signer(ledger.keys, tmp_path / "keys"))
    assert read_state(ledger)


def newest(sequence: int) -> Anchor:
    return Anchor(digest_json(sequence), sequence, "")


def test_an_older_record_does_not_replace_a_newer_one(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    revoked = RevokedDigest(record=HERE, sequence=3, revokes=THERE, reason="bad")
    memory.remember(HERE, "place", newest(5), revoked=[revoked])
    memory.remember(HERE, "place", newest(4))
    known = memory.recall(HERE)
    assert known
    assert (known.sequence, known.record, known.revoked) == (5, digest_json(5), (revoked,))


def test_a_place_is_remembered_and_can_be_forgotten(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    memory.remember(HERE, "place", newest(0))
    assert memory.ledger_at("place") == HERE
    memory.forget_place("place")
    assert memory.ledger_at("place") is None
    assert memory.recall(HERE)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff"])
def test_a_malformed_memory_is_an_error_with_its_file(tmp_path: Path, content: bytes) -> None:
    memory = Memory(tmp_path)
    memory.remember(HERE, "place", newest(0))
    file = memory.ledger_file(HERE)
    file.write_bytes(content)
    with pytest.raises(LedgerError, match=str(file)) as caught:
        memory.recall(HERE)
    assert str(file) in caught.value.remedy


def test_a_memory_that_cannot_be_written_stops_no_reader(
    ledger: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("a file")
    append(ledger, tmp_path)
    assert "could not be remembered" in caplog.text


@pytest.mark.parametrize("read", [read_state, lambda ledger: tuple(ledger.walk())])
@pytest.mark.parametrize("records", [0, 1, 3])
def test_a_writer_between_the_tip_and_the_memory_is_no_set_back(
    ledger: Ledger, tmp_path: Path, records: int, read: Callable[[Ledger], object]
) -> None:
    for _ in range(records):
        append(ledger, tmp_path)

    class Overtaken(LocalStore):
        """After the first read of the tip, another writer links a record and remembers it."""

        pending = True

        def get(self, key: str) -> tuple[bytes, str]:
            try:
                return super().get(key)
            finally:
                if key == "tip" and Overtaken.pending:
                    Overtaken.pending = False
                    append(ledger, tmp_path)

    assert read(replace(ledger, store=Overtaken(tmp_path / "ledger")))


def test_revocations_are_remembered(ledger: Ledger, tmp_path: Path) -> None:
    signer = load_signer(ledger.keys, tmp_path / "keys")
    ledger.append(RecordDraft("revocation", "*", "*", "bad", {}, {}, revokes=THERE), signer)
    reading = read_state(ledger)
    assert reading
    assert ledger.memory
    known = ledger.memory.recall(reading.now.ledger)
    assert known
    assert [entry.revokes for entry in known.revoked] == [THERE]
