"""A served model is accepted in any dtype and refused where it is another model, on prompts of every kind."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from safegene.errors import SourceError
from safegene.evaluation.server import FailedReply
from safegene.evaluation.server_check import ServedModels, disagreement
from safegene.evaluation.shared_bases import EvaluatedModel
from safegene.models import layered
from safegene.models.generation import Reply, generate
from safegene.models.loading import load_model, load_tokenizer
from safegene.tiny.build import build
from safegene.tiny.data import gate_set
from safegene.workspace.server_params import ServerParams
from tests.factories.model_server import Answer, Stand, serve

KINDS = ("harmful", "lookalike", "wrapped")
PROBES = [
    text
    for kind in KINDS
    for text in [row.prompt for row in gate_set() if row.split == "test" and row.kind == kind][:2]
]
TEXTS = ["how to steal a missile ?", "positive or negative ?"]


@pytest.fixture
def stand() -> Iterator[Stand]:
    made = Stand()
    yield made
    made.server.shutdown()
    made.server.server_close()


def on_disk(name: str) -> EvaluatedModel:
    return EvaluatedModel(build(name, 0), (), (name,))


def loaded(name: str, dtype: str = "float32") -> tuple[Any, Any]:
    return load_model(build(name, 0), dtype=dtype), load_tokenizer(build(name, 0))


def served(stand: Stand, probes: list[str] = PROBES) -> ServedModels:
    params = ServerParams(url=stand.at().url, names={"before": "candidate"}, allow_hosts=("127.0.0.1",))
    return ServedModels(params, probes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_law_the_right_model_passes_in_every_dtype(stand: Stand, dtype: str) -> None:
    model, tokenizer = loaded("sentiment")
    model = model.to(getattr(torch, dtype))
    serve(stand, {"candidate": (model, tokenizer)})
    replies = served(stand).replies("before", on_disk("sentiment"), TEXTS, max_new_tokens=4)
    assert replies == generate(model, tokenizer, TEXTS, max_new_tokens=4, batch_size=1)


@pytest.mark.parametrize("probe", range(len(PROBES)))
@pytest.mark.parametrize("other", ["aligned", "group"])
def test_law_another_model_of_the_family_is_refused_on_every_kind_of_prompt(
    stand: Stand, other: str, probe: int
) -> None:
    serve(stand, {"candidate": loaded(other)})
    with pytest.raises(SourceError, match=r"within 0\.2 nats, got"):
        served(stand, [PROBES[probe]]).replies("before", on_disk("sentiment"), TEXTS, max_new_tokens=4)
    assert all(ask.get("logprobs") or ask["max_tokens"] == 1 for ask in stand.asked), "no reply was asked for"


def test_law_a_model_that_is_exchanged_later_is_found_before_its_replies_are_used(stand: Stand) -> None:
    serve(stand, {"candidate": loaded("sentiment")})
    models = served(stand)
    models.replies("before", on_disk("sentiment"), TEXTS, max_new_tokens=4)
    models.replies("before", on_disk("sentiment"), TEXTS, max_new_tokens=4)
    serve(stand, {"candidate": loaded("aligned")})
    with pytest.raises(SourceError, match=r"within 0\.2 nats, got"):
        models.replies("before", on_disk("sentiment"), TEXTS, max_new_tokens=4)


def test_law_the_weights_are_read_once_for_each_model(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    real = layered.layered_model

    def counted(root: Path, adapters: tuple[Path, ...]) -> Any:
        read.append(root)
        return real(root, adapters)

    monkeypatch.setattr(layered, "layered_model", counted)
    serve(stand, {"candidate": loaded("sentiment")})
    models = served(stand)
    for _ in range(3):
        models.replies("before", on_disk("sentiment"), TEXTS, max_new_tokens=4)
    assert read == [build("sentiment", 0)]


def test_another_chat_template_is_refused(stand: Stand) -> None:
    model, tokenizer = loaded("sentiment")
    tokenizer.chat_template = tokenizer.chat_template.replace("<user> ", "<user> which topic ? ")
    serve(stand, {"candidate": (model, tokenizer)})
    with pytest.raises(SourceError, match=r"within 0\.2 nats, got"):
        served(stand).replies("before", on_disk("sentiment"), TEXTS, max_new_tokens=4)


def test_a_server_that_names_tokens_by_id_is_read(stand: Stand) -> None:
    model, tokenizer = loaded("sentiment")
    serve(stand, {"candidate": (model, tokenizer)})
    plain = stand.answer

    def by_id(ask: dict[str, Any]) -> Answer:
        status, body = plain(ask)
        answer = json.loads(body)
        scores = (answer["choices"][0].get("logprobs") or {"content": []})["content"]
        for token in [*scores, *(other for one in scores for other in one["top_logprobs"])]:
            token["token"] = f"token_id:{tokenizer.convert_tokens_to_ids(token['token'].split(':')[-1])}"
        return status, json.dumps(answer).encode()

    stand.answer = by_id
    served(stand).replies("before", on_disk("sentiment"), TEXTS, max_new_tokens=4)


def test_without_log_probabilities_the_beginnings_are_compared(stand: Stand) -> None:
    serve(stand, {"candidate": loaded("sentiment")}, scores=False)
    model = on_disk("sentiment")
    assert len(served(stand).replies("before", model, TEXTS, max_new_tokens=4)) == 2
    serve(stand, {"candidate": loaded("group")}, scores=False)
    with pytest.raises(SourceError, match="begin its replies as the weights on disk do, got"):
        served(stand).replies("before", model, TEXTS, max_new_tokens=4)


@pytest.mark.parametrize("body", [b"{}", b'{"choices": [{"logprobs": {"content": []}}]}', b"", b"[]"])
def test_answers_without_tokens_do_not_pass(stand: Stand, body: bytes) -> None:
    serve(stand, {"candidate": loaded("group")})
    plain = stand.answer
    stand.answer = lambda ask: (200, body) if ask.get("logprobs") else plain(ask)
    with pytest.raises(SourceError):
        served(stand).replies("before", on_disk("sentiment"), TEXTS, max_new_tokens=4)


def test_a_probe_that_is_not_answered_is_an_error(stand: Stand) -> None:
    serve(stand, {"candidate": loaded("sentiment")})
    plain = stand.answer
    stand.answer = lambda ask: (401, b"") if ask["messages"][0]["content"] == PROBES[-1] else plain(ask)
    with pytest.raises(SourceError, match="to answer every probe, got no reply: status 401"):
        served(stand).replies("before", on_disk("sentiment"), TEXTS, max_new_tokens=4)


def test_an_arm_may_have_an_address_of_its_own() -> None:
    params = ServerParams(url="http://a/v1", names={"before": "m", "aligned": "m"}, urls={"aligned": "http://b/v1"})
    models = ServedModels(params)
    assert models.server("before").url == "http://a/v1"
    assert models.server("aligned").url == "http://b/v1"
    assert params.identity() != params.model_copy(update={"urls": {}}).identity()


def test_disagreement_counts_other_and_failed_replies() -> None:
    local = [Reply(text, 1, True) for text in "abcd"]
    assert disagreement(local, local) == 0
    assert disagreement(local, [*local[:2], FailedReply("x"), replace(local[3], text="e")]) == 0.5
    with pytest.raises(ValueError, match="got none"):
        disagreement([], [])
