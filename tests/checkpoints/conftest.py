"""Checkpoints to fetch, a cache of the test's own, a stand-in for the Hub, and a bucket."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from safegene.checkpoints.sources import s3
from tests.factories.hub import HubStandIn, Upload
from tests.factories.llamas import save_adapter, save_llama


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("source") / "llama", shards="80KB")


@pytest.fixture(scope="module")
def lora(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("source") / "lora", llama)


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    stand_in = HubStandIn()
    monkeypatch.setenv("HF_ENDPOINT", stand_in.endpoint)
    yield stand_in
    stand_in.stop()


@pytest.fixture(params=["moto, a mock", "the server of SAFEGENE_TEST_S3"])
def upload(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upload]:
    """Puts a folder's files below a prefix of the bucket ``sources``."""
    server = os.environ.get("SAFEGENE_TEST_S3")
    if request.param.startswith("the server") and not server:
        pytest.skip("SAFEGENE_TEST_S3 is unset: only the mock was tried")
    if request.param.startswith("the server"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", str(server))
        yield from _bucket()
        return
    from moto import mock_aws

    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        yield from _bucket()


def _bucket() -> Iterator[Upload]:
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    client = s3.new_client()
    name = f"sources-{os.getpid()}-{time.time_ns()}"
    client.create_bucket(Bucket=name)

    yield Upload(client, name)
    for item in client.list_objects_v2(Bucket=name).get("Contents", []):
        client.delete_object(Bucket=name, Key=item["Key"])
    client.delete_bucket(Bucket=name)
