"""The ledger's load in small: promoters at once, a part of them killed between their writes."""

import os
import threading
import uuid
from pathlib import Path

import boto3
import pytest

from benchmarks.ledger.load import Load, find_faults, promote_once, run_load, target_of
from safegene.ledger import create_key, open_ledger, write_public_key
from safegene.ledger.audit import audit_workspace
from safegene.workspace.layout import Workspace
from tests.factories.ledger import make_workspace

SMALL = Load(promoters=4, attempts=32, killed=0.4, targets=3)


def require_sound(ws: Workspace) -> None:
    """What the benchmark checks after its load."""
    result = run_load(SMALL, ws.params.promote, ws.root)
    assert sorted(result.ended) == list(range(SMALL.attempts))
    assert {attempt for attempt, how in result.ended.items() if how == "killed"} <= set(SMALL.deaths())
    assert result.count("killed") > 0
    assert result.count("pass") > 0
    ledger = open_ledger(ws.params.promote, ws.root)
    for attempt in range(SMALL.targets):
        promote_once(ledger, ws.root, target_of(SMALL, attempt), SMALL.attempts + attempt)
    faults = find_faults(ledger, result)
    assert (faults.lost, faults.double, faults.problems) == ((), (), ())
    assert audit_workspace(ws).problems == ()


def test_killed_promoters_lose_nothing_and_promote_nothing_twice(tmp_path: Path) -> None:
    require_sound(make_workspace(tmp_path / "ws"))


@pytest.mark.slow
def test_killed_promoters_on_the_real_s3_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = os.environ.get("SAFEGENE_TEST_S3")
    if not endpoint:
        pytest.skip("SAFEGENE_TEST_S3 is unset: no real S3 server is at hand")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    bucket = f"safegene-{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    require_sound(make_workspace(tmp_path / "ws", ledger=f"s3://{bucket}/ledger"))


def test_a_lost_and_a_double_promotion_would_be_found(tmp_path: Path) -> None:
    ws = make_workspace(tmp_path / "ws")
    write_public_key(create_key(), ws.root / "ledger.pub")
    result = run_load(Load(promoters=1, attempts=3, killed=0.0, targets=1), ws.params.promote, ws.root)
    ledger = open_ledger(ws.params.promote, ws.root)
    assert find_faults(ledger, result).lost == ()
    told = {**result.records, 1: result.records[0].replace("sha256:", "sha256:0")[:71]}
    assert find_faults(ledger, type(result)(result.ended, told)).lost == (1,)
    promote_once(ledger, ws.root, "target-0", 0)
    assert len(find_faults(ledger, result).double) == 1


def test_promoters_end_well_where_their_parent_has_more_to_do_at_its_own_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Prefect's services do, once a test has used them: a forked process must not end them."""

    def of_the_parent() -> None:
        raise AssertionError("run in a forked process")

    monkeypatch.setattr(threading, "_threading_atexits", [of_the_parent])
    ws = make_workspace(tmp_path / "ws")
    result = run_load(Load(promoters=1, attempts=1, killed=0.0, targets=1), ws.params.promote, ws.root)
    assert result.ended == {0: "pass"}
