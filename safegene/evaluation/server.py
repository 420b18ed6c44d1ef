"""Replies of a model behind an OpenAI-compatible server (vLLM, llama.cpp, a provider), asked some at a time.

Laws (tests state them): as many replies as prompts, in their order; a reply that failed is a `Failed` with its reason,
never an empty reply; ``length`` is a cut-off reply; nothing is stopped early, since the protocol has no rule for it.

A server says which name it answers to, and nothing about the weights behind that name. So whoever gates by it must
hold its replies against those of the weights on disk: `disagreement`.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from safegene.errors import SourceError
from safegene.models.address import check_url
from safegene.models.generation import Reply
from safegene.models.openai_api import ApiServer, NoAnswer

if TYPE_CHECKING:
    import httpx

KEY = "SAFEGENE_SERVER_KEY"
GIVE_UP = 16  # failures in a row, after which the rest fails without being asked


@dataclass(frozen=True)
class FailedReply:
    """There is no reply, and why."""

    reason: str


@dataclass(frozen=True)
class ModelServer:
    """Where the model is served and how it is asked; ``name`` is a model or a LoRA adapter that the server knows."""

    url: str
    name: str
    allow_hosts: tuple[str, ...] = ()
    timeout_seconds: float = 120.0
    wait_seconds: float = 1.0
    at_once: int = 8

    @property
    def endpoint(self) -> ApiServer:
        """The server's address, checked before every request."""
        return ApiServer(
            self.url,
            KEY,
            lambda: check_url(self.url, self.allow_hosts, whose="server"),
            self.timeout_seconds,
            self.wait_seconds,
        )


def generate_on_server(
    server: ModelServer, prompts: Sequence[str], *, max_new_tokens: int
) -> list[Reply | FailedReply]:
    """Greedy replies to ``prompts``, in their order, at most ``server.at_once`` asked at a time.

    Raises:
        JudgeError: the address is not allowed.
        SourceError: the server does not answer, or does not know the model's name.
    """
    with server.endpoint.client() as client, ThreadPoolExecutor(server.at_once) as pool:
        _require_known(server, client)
        asking = _ServerRun(server, client, max_new_tokens)
        return list(pool.map(asking.one, prompts))


def _require_known(server: ModelServer, client: "httpx.Client") -> None:
    """Servers list what they serve; one that serves a local folder may not, and is asked for one token."""
    try:
        known = server.endpoint.models(client)
    except NoAnswer as error:
        raise SourceError(f"expected the models of the server at {server.url}, got {error}") from None
    if server.name in known:
        return
    try:
        server.endpoint.complete(client, server.name, [{"role": "user", "content": "."}], 1)
    except NoAnswer as error:
        some = ", ".join(sorted(known)[:5]) or "no list"
        raise SourceError(
            f"expected the server at {server.url} to serve {server.name!r}, got {some}, and {error}"
        ) from None


class _ServerRun:
    """Asks one prompt after the other, of several threads, and gives up when all fail."""

    def __init__(self, server: ModelServer, client: "httpx.Client", max_new_tokens: int) -> None:
        self._server, self._client, self._limit = server, client, max_new_tokens
        self._failures, self._lock = 0, Lock()

    def one(self, prompt: str) -> Reply | FailedReply:
        if self._failures >= GIVE_UP:
            return FailedReply(f"not asked: the server failed {GIVE_UP} times in a row")
        turn = [{"role": "user", "content": prompt}]
        try:
            answer = self._server.endpoint.complete(self._client, self._server.name, turn, self._limit)
        except NoAnswer as error:
            with self._lock:
                self._failures += 1
            return FailedReply(f"no reply: {error}")
        with self._lock:
            self._failures = 0
        return Reply(answer.text, answer.tokens, answer.ended == "stop")


def disagreement(local: Sequence[Reply], served: Sequence[Reply | FailedReply]) -> float:
    """Share of prompts whose served reply is not that of the weights on disk; a failed one is not.

    Rounding may turn a greedy reply at one token in many, so some disagreement is normal; two different models agree on
    hardly anything but refusals, so ask ordinary prompts.

    Raises:
        ValueError: nothing to compare.
    """
    same = [
        isinstance(two, Reply) and one.text.split() == two.text.split() for one, two in zip(local, served, strict=True)
    ]
    if not same:
        raise ValueError("expected replies to compare, got none")
    return 1 - sum(same) / len(same)
