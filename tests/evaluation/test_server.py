"""Replies from an OpenAI-compatible server: in order, strictly read, failures named; by a stand-in that really serves.

The server is the stand-in of `tests.factories.model_server`.
"""

import json
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from safegene.errors import JudgeError, SourceError
from safegene.evaluation.server import FailedReply, ModelServer, generate_on_server
from safegene.evaluation.server_check import disagreement
from safegene.models.generation import Reply, generate
from safegene.models.loading import load_model, load_tokenizer
from safegene.models.openai_api import GIVE_UP, MAX_BYTES, TRIES
from safegene.tiny.build import build
from safegene.tiny.corpus import harmful, lookalikes
from tests.factories.model_server import Answer, Stand, said, serve

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@pytest.fixture
def stand() -> Iterator[Stand]:
    made = Stand()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_law_replies_stand_in_their_prompts_places(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEGENE_SERVER_KEY", "canary-secret")
    echo = stand.answer

    another = threading.Event()

    def slow_first(ask: dict[str, Any]) -> Answer:
        if ask["messages"][0]["content"] == "0":
            another.wait(50)
        else:
            another.set()
        return echo(ask)

    stand.answer = slow_first
    texts = [str(i) for i in range(40)]
    assert generate_on_server(stand.at(at_once=4), texts, max_new_tokens=8) == [Reply(text, 3, True) for text in texts]
    assert 1 < stand.most <= 4
    assert stand.keys == {"Bearer canary-secret"}
    assert {(ask["model"], ask["temperature"], ask["max_tokens"]) for ask in stand.asked} == {("candidate", 0, 8)}
    assert "canary-secret" not in repr(stand.at())


def test_a_cut_off_reply_says_so(stand: Stand) -> None:
    stand.answer = lambda _: said("sorry , i", "length")
    assert generate_on_server(stand.at(), ["p"], max_new_tokens=3) == [Reply("sorry , i", 3, False)]


BAD: dict[str, Answer] = {
    "empty": said(""),
    "blank": said(" \n"),
    "null": said(None),
    "a list": said([{"type": "text", "text": "no"}]),
    "filtered": said("no", "content_filter"),
    "tool": said("no", "tool_calls"),
    "not ended": said("no", None),
    "no tokens": said("no", tokens=0),
    "too many tokens": said("no", tokens=99),
    "tokens that are a truth": said("no", tokens=True),
    "no usage": (200, b'{"choices": [{"message": {"content": "no"}, "finish_reason": "stop"}]}'),
    "two choices": (200, json.dumps({"choices": [{}, {}], "usage": {"completion_tokens": 1}}).encode()),
    "not json": (200, b"<html>no</html>"),
    "doubled key": (200, b'{"choices": [], "choices": []}'),
    "401": (401, said("no")[1]),
    "redirect": (302, b""),
    "too long": (200, b" " * (MAX_BYTES + 1)),
}


@pytest.mark.parametrize("name", BAD)
def test_law_what_is_no_reply_is_a_named_failure_at_once(stand: Stand, name: str) -> None:
    stand.answer = lambda _: BAD[name]
    (found,) = generate_on_server(stand.at(), ["p"], max_new_tokens=8)
    assert isinstance(found, FailedReply)
    assert found.reason.startswith("no reply: ")
    assert len(stand.asked) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_tried_again(stand: Stand, status: int) -> None:
    stand.answer = lambda ask: (status, b"") if len(stand.asked) < TRIES else said("yes")
    assert generate_on_server(stand.at(), ["p"], max_new_tokens=8) == [Reply("yes", 3, True)]
    stand.asked.clear()
    stand.answer = lambda ask: (status, b"")
    assert generate_on_server(stand.at(), ["p"], max_new_tokens=8) == [FailedReply(f"no reply: status {status}")]
    assert len(stand.asked) == TRIES


def test_one_failure_leaves_the_others(stand: Stand) -> None:
    stand.answer = lambda ask: (401, b"") if ask["messages"][0]["content"] == "b" else said("yes")
    one, two, three = generate_on_server(stand.at(), ["a", "b", "c"], max_new_tokens=8)
    assert (one, two, three) == (Reply("yes", 3, True), FailedReply("no reply: status 401"), Reply("yes", 3, True))


def test_a_server_that_is_down_is_not_asked_for_ever(stand: Stand) -> None:
    stand.answer = lambda _: (401, b"")
    found = generate_on_server(stand.at(at_once=1), ["p"] * 40, max_new_tokens=8)
    assert all(isinstance(one, FailedReply) for one in found)
    assert len(stand.asked) == GIVE_UP


def test_a_name_that_is_not_served_and_no_server_at_all_are_errors(stand: Stand) -> None:
    stand.names, stand.answer = ["base"], lambda ask: (404, b"")
    with pytest.raises(SourceError, match="'candidate' of the server at .*, got status 404, which lists base"):
        generate_on_server(stand.at(), ["p"], max_new_tokens=8)
    nowhere = ModelServer("http://127.0.0.1:9/v1", "m", ("127.0.0.1",), timeout_seconds=0.5, wait_seconds=0.001)
    with pytest.raises(SourceError, match="expected the model 'm' of the server"):
        generate_on_server(nowhere, ["p"], max_new_tokens=8)


def test_a_private_address_must_be_named(stand: Stand) -> None:
    with pytest.raises(JudgeError, match=r"public address for the server's host 127\.0\.0\.1"):
        generate_on_server(ModelServer(stand.at().url, "candidate"), ["p"], max_new_tokens=8)


@pytest.fixture(scope="module")
def aligned() -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    folder = build("aligned", 0)
    return load_model(folder), load_tokenizer(folder)


def test_a_served_model_gives_the_replies_of_its_weights(
    stand: Stand, aligned: "tuple[PreTrainedModel, PreTrainedTokenizerBase]"
) -> None:
    serve(stand, {"candidate": aligned})
    texts = [one.prompt("test") for one in (*harmful("test")[:4], *lookalikes("test")[:4])]
    served = generate_on_server(stand.at(), texts, max_new_tokens=8)
    model, tokenizer = aligned
    local = generate(model, tokenizer, texts, max_new_tokens=8, batch_size=8)
    assert served == local
    assert disagreement(local, served) == 0.0
    assert disagreement(local, [*served[:-2], FailedReply("x"), Reply("other", 1, True)]) == 0.25
    with pytest.raises(ValueError, match="got none"):
        disagreement([], [])
