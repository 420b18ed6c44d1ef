"""A real OpenAI-compatible server, ``transformers serve``, as the engine of replies."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from safegene.errors import SourceError
from safegene.evaluation.server import ModelServer, generate_on_server, score_on_server
from safegene.evaluation.server_check import ServedModels, disagreement
from safegene.evaluation.shared_bases import EvaluatedModel
from safegene.models.generation import Reply, generate
from safegene.models.loading import load_model, load_tokenizer
from safegene.tiny.build import build
from safegene.tiny.data import gate_set
from safegene.workspace.server_params import ServerParams

READY_SECONDS, LIMIT = 180, 24


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """The aligned tiny model, a local folder, behind a server on a loopback port."""
    cache, folder = tmp_path_factory.mktemp("hub"), str(build("aligned", 0))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).with_name("transformers")), "serve", "--host", "127.0.0.1", "--device", "cpu"]
    log = cache / "log"
    with log.open("wb") as out:
        running = subprocess.Popen(
            [*command, "--port", str(port), "--dtype", "float32"], env=environment, stdout=out, stderr=out
        )
    try:
        until = time.monotonic() + READY_SECONDS
        while True:
            assert running.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < until, log.read_text()[-2000:]
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.2)
        yield ModelServer(f"http://127.0.0.1:{port}/v1", folder, ("127.0.0.1",), wait_seconds=0.1, at_once=2)
    finally:
        running.terminate()
        running.wait(30)


def test_its_replies_are_those_of_the_weights_on_disk(server: ModelServer) -> None:
    folder = build("aligned", 0)
    prompts = [one.prompt for one in gate_set() if one.split == "test"][::40]
    local = generate(load_model(folder), load_tokenizer(folder), prompts, max_new_tokens=LIMIT, batch_size=len(prompts))
    served = generate_on_server(server, prompts, max_new_tokens=LIMIT)
    assert len(served) == len(prompts) >= 8
    assert disagreement(local, served) == 0
    assert [(one.tokens, one.finished) for one in served if isinstance(one, Reply)] == [
        (one.tokens, one.finished) for one in local
    ]


def test_its_weights_are_checked_by_the_beginnings_of_replies(server: ModelServer) -> None:
    """It refuses requests for log-probabilities."""
    folder = build("aligned", 0)
    prompts = [one.prompt for one in gate_set() if one.split == "test"][::80]
    assert score_on_server(server, prompts, tokens=2) is None
    params = ServerParams(url=server.url, names={"aligned": str(folder)}, allow_hosts=server.allow_hosts, at_once=2)
    replies = ServedModels(params).replies("aligned", EvaluatedModel(folder, (), ("it",)), prompts, max_new_tokens=4)
    assert all(isinstance(reply, Reply) for reply in replies)
    other = EvaluatedModel(build("group", 0), (), ("other",))
    with pytest.raises(SourceError, match="begin its replies as the weights on disk do"):
        ServedModels(params).replies("aligned", other, prompts, max_new_tokens=4)


def test_a_reply_that_it_cuts_off_says_so(server: ModelServer) -> None:
    (reply,) = generate_on_server(server, [gate_set()[0].prompt], max_new_tokens=3)
    assert isinstance(reply, Reply)
    assert (reply.tokens, reply.finished) == (3, False)


def test_a_name_that_it_does_not_know_is_refused(server: ModelServer) -> None:
    with pytest.raises(SourceError, match="expected the model 'other/model' of the server at .*, got status 500"):
        generate_on_server(ModelServer(server.url, "other/model", ("127.0.0.1",)), ["hello"], max_new_tokens=3)
