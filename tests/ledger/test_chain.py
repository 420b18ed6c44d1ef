import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safegene.errors import DigestMismatch, LedgerError, PreconditionFailed
from safegene.ledger.chain import Ledger
from safegene.ledger.keys import create_key, ensure_key, key_ids, load_signer, read_public_keys, write_public_key
from safegene.ledger.live import live_record
from safegene.ledger.pointers import record_key
from safegene.ledger.record import FIELDS, Record, RecordDraft, RecordOutcome, seal, unseal
from safegene.ledger.release import open_release, plan_release, publish_release, verify_release
from safegene.ledger.store import LocalStore, Store
from safegene.workspace.digest import canonical_json, digest_bytes, digest_file, digest_json, strict_json


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "ledger")


@pytest.fixture
def ledger(tmp_path: Path, keys: Path, store: LocalStore) -> Ledger:
    write_public_key(create_key(keys), tmp_path / "ledger.pub", keys)
    return Ledger(store, read_public_keys(tmp_path / "ledger.pub"))


def draft(
    outcome: RecordOutcome = "fail",
    *,
    reason: str = "a test",
    fields: Mapping[str, Any] | None = None,
    release: str | None = None,
    replaces: str | None = None,
) -> RecordDraft:
    return RecordDraft(outcome, "t", "production", reason, {}, fields or {}, release=release, replaces=replaces)


def publishing(release: str, *, replaces: str | None = None) -> RecordDraft:
    return draft("pass", release=digest_json(release), replaces=replaces)


def append(ledger: Ledger, keys: Path, one: RecordDraft) -> Record:
    return ledger.append(one, load_signer(ledger.keys, keys))


def test_a_private_key_is_for_its_owner_only(keys: Path) -> None:
    keyid = create_key(keys)
    (file,) = keys.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key_ids(keys) == (keyid,)
    assert ensure_key(keys) == keyid


def test_a_private_key_that_others_can_read_is_refused(ledger: Ledger, keys: Path) -> None:
    (file,) = keys.iterdir()
    file.chmod(0o644)
    with pytest.raises(LedgerError, match=r"extra permissions 044, in .*\.pem") as caught:
        load_signer(ledger.keys, keys)
    assert str(file) in caught.value.remedy


def test_no_key_is_made_inside_a_git_repository(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    with pytest.raises(LedgerError, match="outside every Git repository"):
        create_key(tmp_path / "a" / "keys")
    assert not (tmp_path / "a").exists()


def test_the_folder_of_keys_is_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEGENE_KEYS", str(tmp_path / "elsewhere"))
    assert key_ids() == ()
    assert (create_key(),) == key_ids(tmp_path / "elsewhere")


def test_a_new_key_is_pinned_beside_the_old_one_whose_records_stay_valid(
    ledger: Ledger, keys: Path, tmp_path: Path
) -> None:
    old = append(ledger, keys, draft())
    write_public_key(create_key(keys), tmp_path / "ledger.pub", keys)
    both = Ledger(ledger.store, read_public_keys(tmp_path / "ledger.pub"))
    new = append(both, keys, draft())
    assert [record.digest for record in both.walk()] == [new.digest, old.digest]
    assert new.predicate.chain.key != old.predicate.chain.key
    with pytest.raises(LedgerError, match="expected a signature by a pinned key"):
        tuple(ledger.walk())


def test_a_malformed_public_key_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.pub"
    for content in (b"", b"{}", b'{"keys": []}', b'{"keys": [{"keyid": "a"}]}', b'{"keys": [[]]}'):
        path.write_bytes(content)
        with pytest.raises(LedgerError, match=r"ledger\.pub"):
            read_public_keys(path)


def test_every_field_is_present_or_says_why_not(ledger: Ledger, keys: Path) -> None:
    record = append(ledger, keys, draft(fields={"rates": {"hrr": 0.1}, "incident": None}))
    assert len(FIELDS) == 23
    assert set(record.predicate.fields()) == set(FIELDS)
    assert record.predicate.rates == {"hrr": 0.1}
    assert record.predicate.incident == {"not_recorded": "nobody gave it"}
    with pytest.raises(LedgerError, match=r"\['colour'\]"):
        append(ledger, keys, draft(fields={"colour": "blue"}))


def test_a_record_is_a_signed_statement_named_by_its_bytes(ledger: Ledger, keys: Path) -> None:
    record = append(ledger, keys, draft())
    data, _ = ledger.store.get(record_key(record.digest))
    assert digest_bytes(data) == record.digest
    envelope = strict_json(data, where="record")
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    assert canonical_json(envelope) == data
    assert ledger.read(record.digest) == record


@settings(max_examples=25, deadline=None)
@given(
    reason=st.text(max_size=40),
    fields=st.dictionaries(
        st.sampled_from(sorted(set(FIELDS) - {"chain", "channel"})),
        st.dictionaries(
            st.text(max_size=5), st.integers() | st.floats(allow_nan=False, allow_infinity=False), min_size=1
        ),
    ),
)
def test_what_is_sealed_is_unsealed(
    tmp_path_factory: pytest.TempPathFactory, reason: str, fields: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("keys")
    write_public_key(create_key(folder), folder / "pub", folder)
    public = read_public_keys(folder / "pub")
    one = draft(reason=reason, fields=fields)
    data, record = seal(one, sequence=0, previous=None, signer=load_signer(public, folder))
    assert unseal(data, public, where="here").digest == record.digest
    assert unseal(data, public, where="here").reason == reason


def test_records_link_from_the_newest_to_the_first(ledger: Ledger, keys: Path) -> None:
    made = [append(ledger, keys, draft(reason=str(n))) for n in range(4)]
    walked = list(ledger.walk())
    assert [record.digest for record in walked] == [record.digest for record in reversed(made)]
    assert [record.sequence for record in walked] == [3, 2, 1, 0]
    assert walked[-1].previous is None


def test_an_empty_ledger_has_no_records(ledger: Ledger) -> None:
    assert tuple(ledger.walk()) == ()
    assert ledger.tip() is None
    assert live_record(ledger, "t", "production") is None


def test_writers_at_once_lose_no_record_and_link_none_twice(ledger: Ledger, keys: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        made = set(pool.map(lambda n: append(ledger, keys, draft(reason=str(n))).digest, range(24)))
    walked = list(ledger.walk())
    assert {record.digest for record in walked} == made
    assert sorted(int(record.reason) for record in walked) == list(range(24))


def test_a_pointer_is_moved_only_from_what_was_read(ledger: Ledger, keys: Path) -> None:
    first = append(ledger, keys, publishing("one"))
    ledger.publish(first, None)
    pointer = ledger.pointer("production", "t")
    second, third = (append(ledger, keys, publishing(name, replaces=first.digest)) for name in ("two", "three"))
    ledger.publish(second, pointer)
    with pytest.raises(PreconditionFailed):
        ledger.publish(third, pointer)
    now = live_record(ledger, "t", "production")
    assert now
    assert now.release == second.release


def test_only_publishing_records_go_live(ledger: Ledger, keys: Path) -> None:
    with pytest.raises(LedgerError, match="got 'fail'"):
        ledger.publish(append(ledger, keys, draft("fail")), None)


def test_a_lost_reply_of_the_tip_is_settled_though_others_linked_since(
    ledger: Ledger, keys: Path, store: LocalStore
) -> None:
    class Late(LocalStore):
        """The first swap of the tip succeeds, another writer follows, and only then the reply says 412."""

        lost = True

        def put_if_match(self, key: str, data: bytes, etag: str) -> str:
            done = super().put_if_match(key, data, etag)
            if key == "tip" and Late.lost:
                Late.lost = False
                append(ledger, keys, draft(reason="another"))
                raise PreconditionFailed("412")
            return done

    append(ledger, keys, draft(reason="first"))
    late = Ledger(Late(store.root), ledger.keys)
    mine = append(late, keys, draft(reason="mine"))
    assert [record.reason for record in ledger.walk()] == ["another", "mine", "first"]
    assert mine.sequence == 1


def test_a_cached_record_is_read_once_and_still_verified(
    ledger: Ledger, keys: Path, store: LocalStore, tmp_path: Path
) -> None:
    append(ledger, keys, draft())
    last = append(ledger, keys, draft())
    cached = Ledger(ledger.store, ledger.keys, tmp_path / "cache")
    assert len(tuple(cached.walk())) == 2
    gets: list[str] = []

    class Counted(LocalStore):
        def get(self, key: str) -> tuple[bytes, str]:
            gets.append(key)
            return super().get(key)

    again = Ledger(Counted(store.root), ledger.keys, tmp_path / "cache")
    assert len(tuple(again.walk())) == 2
    assert gets == ["tip"]
    (tmp_path / "cache" / Path(record_key(last.digest)).name).write_bytes(b"{}")
    assert len(tuple(again.walk())) == 2


@dataclass(frozen=True)
class Remote:
    """A store that is not a folder on this machine, kept in one."""

    inner: LocalStore
    uri: str = "s3://stand-in"

    def get(self, key: str) -> tuple[bytes, str]:
        return self.inner.get(key)

    def put_if_absent(self, key: str, data: bytes) -> str:
        return self.inner.put_if_absent(key, data)

    def put_if_match(self, key: str, data: bytes, etag: str) -> str:
        return self.inner.put_if_match(key, data, etag)

    def list(self, prefix: str) -> Iterator[str]:
        return self.inner.list(prefix)

    def discard(self, key: str) -> None:
        self.inner.discard(key)


def test_a_release_is_copied_verified_and_opened(tmp_path: Path) -> None:
    (tmp_path / "adapter").write_bytes(b"weights")
    (tmp_path / "card").write_bytes(b"card")
    files = {f"candidate/{name}": (tmp_path / name, digest_file(tmp_path / name)) for name in ("adapter", "card")}
    release = plan_release("t", files)
    remote, local = Remote(LocalStore(tmp_path / "remote")), LocalStore(tmp_path / "local")
    stores: tuple[Store, ...] = (remote, local)
    for store in stores:
        publish_release(store, release, files)
        publish_release(store, release, files)
        assert verify_release(store, release.digest) == release
        folder = open_release(store, release.digest, cache=tmp_path / "cache")
        assert (folder / "candidate" / "adapter").read_bytes() == b"weights"
    folder = open_release(remote, release.digest, cache=tmp_path / "cache")
    (folder / "candidate" / "adapter").write_bytes(b"changed")
    folder = open_release(remote, release.digest, cache=tmp_path / "cache")
    assert (folder / "candidate" / "adapter").read_bytes() == b"weights", "a damaged copy is fetched again"
    (remote.inner.root / "releases" / folder.name / "candidate" / "adapter").write_bytes(b"changed")
    (folder / "candidate" / "adapter").write_bytes(b"changed")
    with pytest.raises(DigestMismatch, match="candidate/adapter"):
        open_release(remote, release.digest, cache=tmp_path / "cache")


def test_a_file_that_changes_while_it_is_published_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter").write_bytes(b"weights")
    files = {"adapter": (tmp_path / "adapter", digest_file(tmp_path / "adapter"))}
    release = plan_release("t", files)
    (tmp_path / "adapter").write_bytes(b"others!")
    with pytest.raises(DigestMismatch, match="changed after it was verified"):
        publish_release(LocalStore(tmp_path / "s"), release, files)
    assert not (tmp_path / "s" / "releases").exists()


def test_the_ledger_imports_no_model_library() -> None:
    code = (
        "import sys, safegene.ledger.promotion, safegene.ledger.audit, safegene.pipeline.stages.promote;"
        "print(sorted({'torch', 'transformers', 'great_expectations', 'prefect'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"
