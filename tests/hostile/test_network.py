"""Servers that hang, drip, answer something else or break conditions: one bounded wait, one sentence, nothing live."""

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from safegene.checkpoints.sources import fingerprint
from safegene.errors import JudgeError, SourceError, StoreError
from safegene.evaluation.judges.chat import ChatJudge
from safegene.evaluation.judges.formats import ANSWER_FORMATS
from safegene.evaluation.judges.phrases import build as phrase_judge
from safegene.evaluation.server import FailedReply, ModelServer, generate_on_server
from safegene.ledger.store import S3Store, self_test
from safegene.models import address, openai_api
from safegene.pipeline.stages.promote import promote, resolve
from safegene.workspace import s3_client
from safegene.workspace.deadline import DeadlinePassed, within
from safegene.workspace.layout import Workspace
from safegene.workspace.params import JudgeParams
from tests.factories.commands import until
from tests.factories.faults import HANGS, FaultyServer, always, impatient
from tests.factories.ledger import TARGET, attempt, make_workspace

SECONDS = 0.3


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def proxy(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """A faulty server in front of moto's S3, where the standard chain finds it; it has no fault yet."""
    impatient(monkeypatch)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with FaultyServer(s3) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield server


@pytest.fixture
def spoil(proxy: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Give the server a fault, and its clients little patience."""

    def with_fault(fault: str) -> None:
        monkeypatch.setattr(s3_client, "ANSWER_SECONDS", SECONDS if fault in HANGS else 20.0)
        proxy.fault = always(fault)

    return with_fault


def test_a_call_in_time_gives_its_value_or_its_error() -> None:
    assert within(10, lambda: 3) == 3
    with pytest.raises(TimeoutError, match="its own"):
        within(10, lambda: _raise(TimeoutError("its own")))
    with pytest.raises(SystemExit):
        within(10, lambda: _raise(SystemExit(2)))


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("fault", HANGS)
def test_a_judge_that_never_ends_its_answer_is_given_up(fault: str) -> None:
    with FaultyServer() as server:
        server.fault = always(fault)
        judge = ChatJudge(
            url=f"{server.url}/v1",
            model="m",
            revision="",
            format=ANSWER_FORMATS["yes_no"],
            phrases=phrase_judge(JudgeParams(kind="phrases")),
            allow_hosts=("127.0.0.1",),
            timeout_seconds=SECONDS,
            wait_seconds=0.001,
        )
        (decision,) = judge.judge(["p"], ["r"])
        until(lambda: len(server.asked) >= openai_api.TRIES, 60, "the last request, which was given up, to be read")
        assert len(server.asked) == openai_api.TRIES
    assert (decision.harmful, decision.refusal) == ("unscored", "unscored")


@pytest.mark.parametrize("fault", [*HANGS, "html", "redirect"])
def test_a_model_server_that_never_ends_its_answer_is_an_error(fault: str) -> None:
    with FaultyServer() as server:
        server.fault = always(fault)
        asked = ModelServer(f"{server.url}/v1", "m", ("127.0.0.1",), timeout_seconds=SECONDS, wait_seconds=0.001)
        with pytest.raises(SourceError, match="expected the model 'm'"):
            generate_on_server(asked, ["p"], max_new_tokens=3)
        assert len(server.asked) <= openai_api.TRIES


@pytest.mark.parametrize("fault", HANGS)
def test_a_reply_that_never_ends_is_a_failed_reply(fault: str) -> None:
    with FaultyServer() as server:
        server.fault = lambda method, path: fault if path.endswith("completions") else "models"
        asked = ModelServer(f"{server.url}/v1", "m", ("127.0.0.1",), timeout_seconds=SECONDS, wait_seconds=0.001)
        (reply,) = generate_on_server(asked, ["p"], max_new_tokens=3)
    assert isinstance(reply, FailedReply)


def test_a_name_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        threading.Event().wait(30)

    monkeypatch.setattr(address, "LOOKUP_SECONDS", SECONDS)
    monkeypatch.setattr(socket, "getaddrinfo", never)
    with pytest.raises(JudgeError, match=r"no complete answer within 0\.3 s"):
        address.check_url("http://host/v1", ())


@pytest.mark.parametrize("fault", [*HANGS, "html", "500", "redirect"])
def test_an_s3_server_that_does_not_answer_is_one_sentence(spoil: Callable[[str], None], fault: str) -> None:
    store = S3Store("bucket", "ledger")
    etag = store.put_if_absent("key", b"1")
    spoil(fault)
    calls: list[Callable[[], object]] = [
        lambda: store.put_if_absent("new", b"2"),
        lambda: store.put_if_match("key", b"2", etag),
        lambda: store.list(""),
        lambda: store.get("key"),
        lambda: self_test(store),
    ]
    for call in calls:
        s3_client._silent.clear()
        with pytest.raises(StoreError, match="s3://bucket/ledger") as caught:
            call()
        assert "\n" not in caught.value.message


@pytest.mark.parametrize("fault", [*HANGS, "html", "500", "redirect"])
def test_a_source_that_does_not_answer_is_one_sentence(spoil: Callable[[str], None], fault: str) -> None:
    spoil(fault)
    with pytest.raises(SourceError, match="s3://bucket/model") as caught:
        fingerprint("s3://bucket/model")
    assert "\n" not in caught.value.message


def test_after_a_silence_the_next_calls_fail_at_once(proxy: FaultyServer, spoil: Callable[[str], None]) -> None:
    store = S3Store("bucket", "ledger")
    spoil("hang")
    with pytest.raises(StoreError, match="no complete answer"):
        store.get("key")
    asked = len(proxy.asked)
    for _ in range(50):
        with pytest.raises(StoreError, match="no answer to an earlier request"):
            store.get("key")
    assert len(proxy.asked) == asked


@pytest.fixture
def ws(proxy: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with one live target, whose ledger lies behind the proxy."""
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    return make_workspace(tmp_path / "ws", ledger=f"s3://bucket/{tmp_path.name}")  # a ledger of its own


@pytest.mark.parametrize("fault", ["hang", "drip body", "html", "ignores", "500"])
def test_nothing_is_promoted_on_a_store_that_misbehaves(
    ws: Workspace, spoil: Callable[[str], None], fault: str, tmp_path: Path
) -> None:
    spoil(fault)
    with pytest.raises(StoreError) as caught:
        promote(ws, TARGET)
    assert "\n" not in caught.value.message
    spoil("")
    s3_client._silent.clear()
    assert not list(S3Store("bucket", tmp_path.name).list("channels/"))


def test_a_lost_reply_at_every_write_is_settled(
    ws: Workspace, proxy: FaultyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("safegene.ledger.store._proven", {S3Store("bucket", tmp_path.name).uri})
    lost: set[str] = set()

    def once(method: str, path: str) -> str:
        if method == "PUT" and path not in lost:
            lost.add(path)
            return "lost"
        return ""

    proxy.fault = once
    assert attempt(ws) == "pass"
    assert len(lost) > 5
    proxy.fault = always("")
    assert resolve(ws, TARGET).release


def test_an_answer_that_is_cut_off_is_no_content(proxy: FaultyServer) -> None:
    store = S3Store("bucket", "cut")
    store.put_if_absent("key", b"0123456789")
    proxy.fault = always("cut")
    with pytest.raises(StoreError, match="key"):
        store.get("key")


def test_a_late_call_is_abandoned_and_does_not_keep_the_process(tmp_path: Path) -> None:
    with pytest.raises(DeadlinePassed, match="within 0.05 s"):
        within(0.05, lambda: threading.Event().wait(30))
