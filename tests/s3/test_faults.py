"""A faulty proxy in front of the real S3 server: lost replies, cut answers, errors and silence lose no promotion."""

import os
import random
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from safegene.errors import SafegeneError, StoreError
from safegene.ledger.audit import audit_workspace
from safegene.ledger.chain import open_ledger
from safegene.ledger.store import open_store, self_test
from safegene.pipeline.stages.promote import promote, promote_attempt, resolve
from safegene.workspace import s3_client
from safegene.workspace.layout import Workspace
from tests.factories.faults import FaultyServer, always, impatient
from tests.factories.ledger import TARGET, live_digest, make_target, make_workspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
Fault = Callable[[str, str], str]
NONE = always("")
FAULTS = ("lost", "cut", "500", "html", "hang", "drip body")


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    endpoint = os.environ.get("SAFEGENE_TEST_S3")
    if not endpoint:
        pytest.skip("SAFEGENE_TEST_S3 is unset: no real S3 server is at hand")
    impatient(monkeypatch)
    monkeypatch.setattr(s3_client, "SILENT_SECONDS", 0.0)
    with FaultyServer(endpoint) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


@pytest.fixture
def spoil(proxy: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[Fault], None]:
    """Give the server faults, and its clients little patience; with `NONE` they have as much as ever."""

    def with_faults(fault: Fault) -> None:
        monkeypatch.setattr(s3_client, "ANSWER_SECONDS", 20.0 if fault is NONE else 2.0)
        proxy.fault = fault

    return with_faults


@pytest.fixture
def ws(proxy: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    bucket = f"safegene-{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    return make_workspace(tmp_path / "ws", ledger=f"s3://{bucket}/ledger")


def test_promotions_through_a_faulty_network_are_all_or_nothing(ws: Workspace, spoil: Callable[[Fault], None]) -> None:
    chance, passed, messages = random.Random(1), 0, list[str]()
    for target in (f"target-{number}" for number in range(12)):  # a further attempt on one would need more evidence
        make_target(ws, target)
        spoil(lambda method, path: chance.choice(FAULTS) if chance.random() < 0.04 else "")
        try:
            assert promote_attempt(ws, target) == "pass"
            passed += 1
        except SafegeneError as error:
            messages.append(error.message)
        spoil(NONE)
        assert promote_attempt(ws, target) == "pass", "the same command settles it"
        assert resolve(ws, target).release == live_digest(ws, target)
    assert audit_workspace(ws).problems == ()
    sequences = [record.sequence for record in open_ledger(ws.params.promote, ws.root).walk()]
    assert sequences == list(range(len(sequences)))[::-1]
    assert passed + len(messages) == 12
    assert passed
    assert messages
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize("fault", ["ignores", "hang", "html", "500"])
def test_nothing_is_promoted_on_the_real_server_behind_a_fault(
    ws: Workspace, spoil: Callable[[Fault], None], fault: str
) -> None:
    spoil(always(fault))
    with pytest.raises(StoreError):
        self_test(open_store(ws.params.promote.ledger))
    with pytest.raises(StoreError) as caught:
        promote(ws, TARGET)
    assert "\n" not in caught.value.message
    spoil(NONE)
    assert live_digest(ws) is None
