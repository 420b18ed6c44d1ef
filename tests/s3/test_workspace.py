"""A whole workspace on the real S3 server: DVC's remote and the ledger, seen again from a fresh clone."""

import json
import os
import uuid
from pathlib import Path

import boto3
import pytest

from tests.factories.commands import dvc, git, run, status

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> str:
    endpoint = os.environ.get("SAFEGENE_TEST_S3")
    if not endpoint:
        pytest.skip("SAFEGENE_TEST_S3 is unset: no real S3 server is at hand")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    name = f"ws-{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=name)
    return name


def test_push_clone_pull_and_verify(copy: Path, bucket: str, tmp_path: Path) -> None:
    dvc(copy, "remote", "modify", "store", "url", f"s3://{bucket}/dvc")
    git(copy, "commit", "-qam", "remote on S3")
    dvc(copy, "push")
    git(tmp_path, "clone", "-q", str(copy), str(tmp_path / "clone"))
    clone = tmp_path / "clone"
    dvc(clone, "pull")
    assert "up to date" in dvc(clone, "status")
    assert "verified" in run(clone, "audit", "verify").stdout
    assert status(clone)["sentiment"]["live"] == status(copy)["sentiment"]["live"]


def test_a_byte_changed_in_s3_is_refused_by_pull(copy: Path, bucket: str, tmp_path: Path) -> None:
    dvc(copy, "remote", "modify", "store", "url", f"s3://{bucket}/dvc")
    git(copy, "commit", "-qam", "remote on S3")
    dvc(copy, "push")
    client = boto3.client("s3")
    objects = client.list_objects_v2(Bucket=bucket, Prefix="dvc/")["Contents"]
    largest = max(objects, key=lambda entry: entry["Size"])["Key"]
    body = bytearray(client.get_object(Bucket=bucket, Key=largest)["Body"].read())
    body[len(body) // 2] ^= 1
    client.put_object(Bucket=bucket, Key=largest, Body=bytes(body))
    git(tmp_path, "clone", "-q", str(copy), str(tmp_path / "clone"))
    dvc(tmp_path / "clone", "pull", code=(1, 255))


def test_promotion_with_the_ledger_on_s3(copy: Path, bucket: str, prefect_api: str, tmp_path: Path) -> None:
    path = copy / "params.yaml"
    path.write_text(path.read_text().replace("ledger: ledger ", f"ledger: s3://{bucket}/ledger "))
    assert "seen before" in run(copy, "resolve", "sentiment", "production", code=1).stderr, (
        "no ledger is exchanged unseen"
    )
    git(copy, "rm", "--quiet", "ledger.seen")
    git(copy, "commit", "-qam", "another ledger")
    done = run(copy, "run", PREFECT_API_URL=prefect_api)
    assert "pass" in done.stderr
    answer = json.loads(run(copy, "resolve", "sentiment", "production").stdout)
    assert f"s3://{bucket}/ledger/releases/" in json.dumps(answer)
    assert "verified" in run(copy, "audit", "verify").stdout
    client = boto3.client("s3")
    keys = [e["Key"] for e in client.list_objects_v2(Bucket=bucket, Prefix="ledger/releases/")["Contents"]]
    adapter = next(key for key in keys if key.endswith("adapter_model.safetensors"))
    body = bytearray(client.get_object(Bucket=bucket, Key=adapter)["Body"].read())
    body[-1] ^= 1
    client.put_object(Bucket=bucket, Key=adapter, Body=bytes(body))
    assert "adapter_model.safetensors" in run(copy, "audit", "verify", code=1).stdout
    elsewhere = {"SAFEGENE_CACHE": str(tmp_path / "cache")}  # here, a copy verified before is still sound
    assert "DigestMismatch" in run(copy, "resolve", "sentiment", "production", code=1, **elsewhere).stderr
