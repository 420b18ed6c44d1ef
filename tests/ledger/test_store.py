import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError
from moto import mock_aws

from safegene.errors import ParamsError, PreconditionFailed, StoreError
from safegene.ledger.store import LocalStore, ObjectMissing, S3Store, Store, check_key, open_store, self_test
from tests.factories.ledger import StoreWithoutConditions


@pytest.fixture
def mock_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """moto, which is a mock of S3 in this process: the real server is in tests/s3."""
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws():
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="bucket")
        yield


@pytest.fixture(params=["local", "mock s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return LocalStore(tmp_path / "store")
    request.getfixturevalue("mock_s3")
    return S3Store("bucket", "prefix")


def test_what_was_put_is_read_and_listed(store: Store) -> None:
    etag = store.put_if_absent("a/one.json", b"1")
    assert store.get("a/one.json") == (b"1", etag)
    store.put_if_absent("a/two.json", b"2")
    store.put_if_absent("b", b"3")
    assert list(store.list("a/")) == ["a/one.json", "a/two.json"]
    assert store.get("b")[0]
    with pytest.raises(ObjectMissing):
        store.get("a/three.json")
    with pytest.raises(ObjectMissing, match=r"a/three\.json"):
        store.get("a/three.json")


def test_an_object_is_created_once_and_the_same_bytes_again_are_no_conflict(store: Store) -> None:
    store.put_if_absent("key", b"1")
    store.put_if_absent("key", b"1")
    with pytest.raises(PreconditionFailed, match="key"):
        store.put_if_absent("key", b"2")
    assert store.get("key")[0] == b"1"


def test_only_the_version_that_was_read_is_replaced(store: Store) -> None:
    first = store.put_if_absent("key", b"1")
    second = store.put_if_match("key", b"2", first)
    with pytest.raises(PreconditionFailed):
        store.put_if_match("key", b"3", first)
    assert store.get("key") == (b"2", second)
    with pytest.raises(PreconditionFailed):
        store.put_if_match("absent", b"3", first)


def test_sixteen_writers_have_one_winner(store: Store) -> None:
    self_test(store)
    assert list(store.list("")) == []


def test_a_store_that_ignores_conditions_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=rf"got 16, in {tmp_path}/store"):
        self_test(StoreWithoutConditions(tmp_path / "store"))


@pytest.mark.usefixtures("mock_s3")
def test_a_lost_reply_is_settled_by_reading_back(monkeypatch: pytest.MonkeyPatch) -> None:
    store = S3Store("bucket", "lost")
    etag = store.put_if_absent("mine", b"old")
    put = store._client.put_object

    def answered_too_late(**request: object) -> object:
        put(**request)  # type: ignore[arg-type]
        raise EndpointConnectionError(endpoint_url="mock")

    monkeypatch.setattr(store._client, "put_object", answered_too_late)
    assert store.put_if_absent("new", b"new") == store.get("new")[1]
    store.put_if_match("mine", b"newer", etag)
    assert store.get("mine")[0] == b"newer"


@pytest.mark.usefixtures("mock_s3")
def test_a_write_that_never_arrived_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    store = S3Store("bucket", "never")

    def refuse(**request: object) -> object:
        raise EndpointConnectionError(endpoint_url="mock")

    monkeypatch.setattr(store._client, "put_object", refuse)
    with pytest.raises(StoreError, match="expected to write key in s3://bucket/never"):
        store.put_if_absent("key", b"1")


@pytest.mark.usefixtures("mock_s3")
def test_a_server_that_wants_the_etag_bare_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    store = S3Store("bucket", "bare")
    etag = store.put_if_absent("key", b"1")
    assert etag.startswith('"')
    put, asked = store._client.put_object, []

    def bare_only(**request: str) -> object:
        asked.append(request["IfMatch"])
        return put(**{**request, "IfMatch": etag if request["IfMatch"] == etag.strip('"') else '"0"'})  # type: ignore[arg-type]

    monkeypatch.setattr(store._client, "put_object", bare_only)
    store.put_if_match("key", b"2", etag)
    assert asked == [etag, etag.strip('"')]


@pytest.mark.usefixtures("mock_s3")
def test_a_missing_bucket_is_an_error_not_an_absent_object() -> None:
    with pytest.raises(StoreError, match="s3://nobody/x") as caught:
        S3Store("nobody", "x").get("key")
    assert not isinstance(caught.value, ObjectMissing)
    assert "AWS_ENDPOINT_URL" in caught.value.remedy


@pytest.mark.parametrize("key", ["../up", "/root", "a//b", ".hidden", "a/.lock", "a b", "", "a\nb"])
def test_a_key_cannot_leave_the_store(tmp_path: Path, key: str) -> None:
    with pytest.raises(StoreError, match="expected a key"):
        check_key(key)
    with pytest.raises(StoreError):
        LocalStore(tmp_path).put_if_absent(key, b"1")


def test_a_reader_never_sees_half_an_object(tmp_path: Path) -> None:
    store, done = LocalStore(tmp_path), threading.Event()
    blocks = [bytes([n]) * 200_000 for n in range(20)]
    etag = store.put_if_absent("key", blocks[0])

    def read() -> set[int]:
        seen = set()
        while not done.is_set():
            data, _ = store.get("key")
            assert len(data) == 200_000
            assert len(set(data)) == 1
            seen.add(data[0])
        return seen

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for block in blocks[1:]:
            etag = store.put_if_match("key", block, etag)
        done.set()
        assert all(reader.result() for reader in readers)


def test_stores_by_uri(tmp_path: Path) -> None:
    assert open_store("ledger", base=tmp_path) == LocalStore(tmp_path / "ledger")
    assert open_store(f"file://{tmp_path}/x") == LocalStore(tmp_path / "x")
    assert open_store("s3://bucket/a/b").uri == "s3://bucket/a/b"
    for wrong in ("http://host/x", "s3://", "s3://key:secret@bucket/x"):
        with pytest.raises(ParamsError) as caught:
            open_store(wrong)
        assert "secret" not in str(caught.value)
