"""Stores, ledger and registry against a real S3 server: a Ceph RGW at ``SAFEGENE_TEST_S3``, with ``AWS_*`` set."""

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from safegene.errors import DigestMismatch, LedgerError, PreconditionFailed, StoreError
from safegene.ledger import live_record, open_ledger, record_key
from safegene.ledger.audit import audit_workspace
from safegene.ledger.incumbent import open_incumbent, read_incumbent
from safegene.ledger.store import ObjectMissing, S3Store, open_store, self_test
from safegene.ledger.trace import history
from safegene.pipeline.stages.promote import promote, resolve, rollback
from safegene.workspace.layout import Workspace
from tests.factories.ledger import TARGET, attempt, live_digest, make_workspace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    endpoint = os.environ.get("SAFEGENE_TEST_S3")
    if not endpoint:
        pytest.skip("SAFEGENE_TEST_S3 is unset: no real S3 server is at hand")
    before = os.environ.get("AWS_ENDPOINT_URL")
    os.environ["AWS_ENDPOINT_URL"] = endpoint
    name = f"safegene-{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=name)
    yield name
    if before is None:
        del os.environ["AWS_ENDPOINT_URL"]
    else:
        os.environ["AWS_ENDPOINT_URL"] = before


@pytest.fixture
def place(bucket: str) -> str:
    return f"s3://{bucket}/{uuid.uuid4().hex[:8]}"


@pytest.fixture
def ws(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    return make_workspace(tmp_path / "ws", ledger=place)


def flip(store: S3Store, key: str, at: int = -2) -> None:
    data = bytearray(store.get(key)[0])
    data[at] ^= 1
    store._client.put_object(Bucket=store.bucket, Key=f"{store.prefix}/{key}", Body=bytes(data))


def store_of(ws: Workspace) -> S3Store:
    store = open_store(ws.params.promote.ledger)
    assert isinstance(store, S3Store)
    return store


def test_the_server_honours_conditions(place: str) -> None:
    store = open_store(place)
    self_test(store)
    etag = store.put_if_absent("a/key", b"1")
    assert store.put_if_absent("a/key", b"1") == etag
    with pytest.raises(PreconditionFailed):
        store.put_if_absent("a/key", b"2")
    new = store.put_if_match("a/key", b"2", etag)
    with pytest.raises(PreconditionFailed):
        store.put_if_match("a/key", b"3", etag)
    assert store.get("a/key") == (b"2", new)
    with pytest.raises(ObjectMissing):
        store.get("a/other")
    assert list(store.list("a/")) == ["a/key"]


def test_a_bucket_that_is_not_there_is_an_error(bucket: str) -> None:
    with pytest.raises(StoreError, match="NoSuchBucket"):
        self_test(open_store(f"s3://{bucket}-not"))


def test_a_promotion_on_s3_is_served_audited_and_rolled_back(ws: Workspace, tmp_path: Path) -> None:
    assert attempt(ws, alpha=1.0) == "pass"
    first = live_digest(ws)
    assert attempt(ws, alpha=2.0, outcome="fail") == "fail"
    assert attempt(ws, alpha=3.0) == "pass"
    assert audit_workspace(ws).problems == ()
    got = resolve(ws, TARGET)
    assert got.uri.startswith("s3://")
    assert (Path(got.path) / "candidate" / "adapter_model.safetensors").read_bytes() == b"adapter 3.0" * 20
    incumbent = open_incumbent(read_incumbent(ws.incumbent(TARGET)), ws.root)
    assert incumbent
    assert (incumbent / "candidate" / "adapter_model.safetensors").read_bytes() == b"adapter 1.0" * 20
    assert rollback(ws, TARGET).release == first
    assert audit_workspace(ws).problems == ()
    ledger = open_ledger(ws.params.promote, ws.root)
    assert [row.outcome for row in history(ledger, TARGET)] == ["rollback", "pass", "fail", "pass"]


def test_one_swapped_byte_on_s3_is_named(ws: Workspace) -> None:
    assert attempt(ws, alpha=1.0) == "pass"
    store, ledger = store_of(ws), open_ledger(ws.params.promote, ws.root)
    release = str(live_digest(ws)).removeprefix("sha256:")
    adapter = f"releases/{release}/candidate/adapter_model.safetensors"
    (record,) = (record_key(record.digest) for record in ledger.walk())
    for key in (adapter, record):
        flip(store, key, at=200)
        assert any(f"{store.uri}/{key}" in problem for problem in audit_workspace(ws).problems)
    with pytest.raises(LedgerError, match=record):
        tuple(ledger.walk())
    flip(store, record, at=200)
    with pytest.raises(DigestMismatch, match=adapter):
        resolve(ws, TARGET)
    flip(store, adapter, at=200)
    assert audit_workspace(ws).problems == ()


PROMOTER = """
import os, random, sys
from pathlib import Path
from safegene.workspace.digest import digest_file, digest_json
from safegene.errors import PromotionRefused, StaleArtifact
from safegene.ledger import load_signer, open_ledger
from safegene.ledger.promotion import record_promotion
from safegene.ledger.rules import PromotionClaim
from safegene.ledger.store import S3Store
from safegene.workspace.layout import Workspace

ws, name, attempts, kill = Workspace(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "kill"
ledger = open_ledger(ws.params.promote, ws.root)
signer = load_signer(ledger.keys)
put = S3Store._put

def killed(self, key, data, **condition):
    if kill and key == "tip":
        os._exit(9)
    return put(self, key, data, **condition)

S3Store._put = killed
for number in range(attempts):
    path = Path(sys.argv[1]) / f"adapter-{name}-{number}"
    path.write_text(f"{name} {number}")
    claim = PromotionClaim("sentiment", "pass", f"{name} {number}", {"candidate": digest_json([name, number])}, {},
                  {"candidate/adapter": (path, digest_file(path))}, None)
    try:
        record_promotion(ledger, signer, claim, "production")
    except (PromotionRefused, StaleArtifact):
        pass
    print(name, number, flush=True)
"""


def test_processes_at_once_some_killed_between_the_two_writes_lose_nothing(ws: Workspace) -> None:
    """Every attempt that reported back is on the chain once; a killed one left an orphan and no half promotion."""
    shutil.rmtree(ws.data / "targets")  # these attempts are not about the workspace's own candidate
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PROMOTER, str(ws.root), f"p{n}", "6", "kill" if n % 3 == 2 else "live"],
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(6)
    ]
    said = [line for child in children for line in (child.communicate()[0] or "").splitlines()]
    assert sorted(child.returncode for child in children) == [0, 0, 0, 0, 9, 9]
    ledger = open_ledger(ws.params.promote, ws.root)
    chain = list(ledger.walk())
    attempts = [record for record in chain if record.outcome != "superseded"]
    candidates = [record.artefacts["candidate"] for record in attempts]
    assert len(said) == len(attempts) == len(set(candidates)) == 24
    audit = audit_workspace(ws)
    assert audit.problems == ()
    assert len(audit.notes) >= 2  # the two killed ones, and what lost a race for the tip
    now = live_record(ledger, TARGET, "production")
    assert now
    won = [
        r
        for r in chain
        if r.outcome == "pass" and r.digest not in {s.replaces for s in chain if s.outcome == "superseded"}
    ]
    assert [record.digest for record in won] == [now.record.digest]


def test_a_dry_run_writes_nothing_to_s3(ws: Workspace) -> None:
    promote(ws, TARGET, dry_run=True)
    assert list(store_of(ws).list("")) == []
