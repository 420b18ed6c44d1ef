"""A stand-in for an OpenAI-compatible model server: a real HTTP server over `models.generation`, or over misbehaviour.

``transformers serve`` is in tests/evaluation/test_server_transformers.py; vLLM cannot be in the lock.
"""

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from safegene.evaluation.server import ModelServer
from safegene.models.generation import end_tokens, generate
from safegene.models.templates import encode_chat

Answer = tuple[int, bytes]


def said(text: object, ended: object = "stop", tokens: object = 3, **more: object) -> Answer:
    choice = {"message": {"content": text}, "finish_reason": ended}
    return 200, json.dumps({"choices": [choice], "usage": {"completion_tokens": tokens}} | more).encode()


class Stand:
    """A stand-in for a model server on a loopback port: knows one model's name and answers as a test tells it to."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.at_once = self.most = 0
        self.names = ["candidate"]
        self.answer: Callable[[dict[str, Any]], Answer] = lambda ask: said(ask["messages"][0]["content"])
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.give(200, json.dumps({"data": [{"id": name} for name in outer.names]}).encode())

            def do_POST(self) -> None:
                ask = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.asked.append(ask)
                    outer.keys.add(self.headers.get("Authorization"))
                    outer.at_once += 1
                    outer.most = max(outer.most, outer.at_once)
                try:
                    answer = outer.answer(ask)
                finally:
                    with lock:  # before the client can read the answer and ask the next question
                        outer.at_once -= 1
                self.give(*answer)

            def give(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                if 300 <= status < 400:
                    self.send_header("Location", "/v1/elsewhere")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def at(self, **more: Any) -> ModelServer:
        url = f"http://127.0.0.1:{self.server.server_port}/v1"
        return ModelServer(url, "candidate", ("127.0.0.1",), timeout_seconds=60.0, wait_seconds=0.001, **more)


def serve(stand: Stand, models: Mapping[str, tuple[Any, Any]], *, scores: bool = True) -> None:
    """Let the stand-in answer by models: name -> (model, tokenizer); with ``scores`` log-probabilities too."""
    lock = threading.Lock()
    stand.names = list(models)

    def answer(ask: dict[str, Any]) -> Answer:
        asked, limit = ask["messages"][0]["content"], ask["max_tokens"]
        with lock:
            if ask.get("logprobs"):
                return scored(*models[ask["model"]], asked, limit, ask["top_logprobs"]) if scores else (422, b"")
            (reply,) = generate(*models[ask["model"]], [asked], max_new_tokens=limit, batch_size=1)
        return said(reply.text, "stop" if reply.finished else "length", reply.tokens)

    stand.answer = answer


@torch.inference_mode()
def scored(model: Any, tokenizer: Any, prompt: str, limit: int, top: int) -> Answer:
    """A greedy reply, token by token as a server's text, with the most likely tokens in each place."""
    ids, content = encode_chat(tokenizer, prompt), []
    ends = end_tokens(model, tokenizer)
    for _ in range(limit):
        values = model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1).topk(top)
        tokens = [
            {"token": tokenizer.decode([token]), "logprob": value}
            for token, value in zip(values.indices.tolist(), values.values.tolist(), strict=True)
        ]
        content.append(tokens[0] | {"top_logprobs": tokens})
        ids.append(int(values.indices[0]))
        if ids[-1] in ends:
            break
    choice = {"message": {"content": ""}, "finish_reason": "stop", "logprobs": {"content": content}}
    return 200, json.dumps({"choices": [choice]}).encode()
