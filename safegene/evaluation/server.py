"""Replies of models behind OpenAI-compatible servers (vLLM, SGLang, llama.cpp, a provider), several at a time.

Laws (tests state them): as many replies as prompts, in their order; a request that failed is a `FailedReply` with its
reason, never an empty reply; a reply that ended by ``length`` was cut off. No reply is stopped early, since the
protocol has no rule for it.

A server states the name of a model and nothing about its weights. So `safegene.evaluation.server_check` compares what
it answers with the weights on disk, before the first reply of a model and after every batch.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from safegene.errors import SourceError
from safegene.models.address import check_url
from safegene.models.generation import Reply
from safegene.models.openai_api import ApiServer, Completion, NoAnswer, NotAsked, ScoredToken

if TYPE_CHECKING:
    import httpx

KEY = "SAFEGENE_SERVER_KEY"
TOP = 5  # log-probabilities that are asked for at each position; every server gives as many
T = TypeVar("T")


@dataclass(frozen=True)
class FailedReply:
    """A reply that the server did not give, and the reason."""

    reason: str


@dataclass(frozen=True)
class ModelServer:
    """A served model.

    Attributes:
        url: address of the API, such as ``http://host:8000/v1``.
        name: name of a model or a LoRA adapter on the server.
        allow_hosts: private hosts that may be asked.
        timeout_seconds: longest time for one answer.
        wait_seconds: first waiting time before a request is repeated.
        at_once: requests at a time.
    """

    url: str
    name: str
    allow_hosts: tuple[str, ...] = ()
    timeout_seconds: float = 120.0
    wait_seconds: float = 1.0
    at_once: int = 8


def generate_on_server(
    server: ModelServer, prompts: Sequence[str], *, max_new_tokens: int
) -> list[Reply | FailedReply]:
    """Greedy replies to ``prompts``, in their order, at most ``server.at_once`` asked at a time.

    Raises:
        JudgeError: the address is not allowed.
        SourceError: the server does not answer, or does not know the model's name.
    """
    with _connected(server) as connection:
        return connection.each(partial(connection.reply, limit=max_new_tokens), prompts)


def score_on_server(
    server: ModelServer, prompts: Sequence[str], *, tokens: int
) -> list[tuple[ScoredToken, ...] | FailedReply] | None:
    """The first ``tokens`` tokens of greedy replies with the `TOP` log-probabilities in each place, in their order.

    None where the server gives no log-probabilities: it refuses such a request, or answers without them. Errors as of
    `generate_on_server`.
    """
    with _connected(server) as connection:
        try:
            if connection.scores(prompts[0], tokens) is None:
                return None
        except NoAnswer:
            return None
        return connection.each(lambda prompt: connection.scores(prompt, tokens) or (), prompts)


@dataclass
class _Connection:
    """Connections to one server."""

    server: ModelServer
    api: ApiServer
    client: "httpx.Client"

    def each(self, ask: Callable[[str], T], prompts: Sequence[str]) -> list[T | FailedReply]:
        """The answer to each prompt, or why there is none."""

        def answer(prompt: str) -> T | FailedReply:
            try:
                return ask(prompt)
            except NotAsked as error:
                return FailedReply(f"not asked: {error}")
            except NoAnswer as error:
                return FailedReply(f"no reply: {error}")

        with ThreadPoolExecutor(self.server.at_once) as pool:
            return list(pool.map(answer, prompts))

    def reply(self, prompt: str, limit: int) -> Reply:
        return self.api.complete(self.client, self._request(prompt, limit), lambda answer: _reply(answer, limit))

    def scores(self, prompt: str, limit: int) -> tuple[ScoredToken, ...] | None:
        request = self._request(prompt, limit) | {"logprobs": True, "top_logprobs": TOP}
        return self.api.score(self.client, request).tokens

    def _request(self, prompt: str, limit: int) -> dict[str, object]:
        turn = [{"role": "user", "content": prompt}]
        return {"model": self.server.name, "messages": turn, "temperature": 0, "max_tokens": limit}

    def require_name(self) -> None:
        """Raises SourceError where the server does not answer under the name."""
        names: frozenset[str] = frozenset()
        try:
            names = self.api.models(self.client)
            if self.server.name not in names:  # a server of a local folder may not list its name
                self.reply(".", 1)
        except NoAnswer as error:
            listed = f", which lists {', '.join(sorted(names)[:5])}" if names else ""
            raise SourceError(
                f"expected the model {self.server.name!r} of the server at {self.server.url}, got {error}{listed}"
            ) from None


@contextmanager
def _connected(server: ModelServer) -> Iterator[_Connection]:
    api = ApiServer(
        server.url,
        KEY,
        before_request=lambda again: check_url(server.url, server.allow_hosts, whose="server"),
        timeout_seconds=server.timeout_seconds,
        wait_seconds=server.wait_seconds,
    )
    with api.connect() as client:
        connection = _Connection(server, api, client)
        connection.require_name()
        yield connection


def _reply(answer: Completion, limit: int) -> Reply:
    tokens = answer.usage.completion_tokens if answer.usage else None
    if tokens is None or not 0 < tokens <= limit:
        raise NoAnswer(f"an answer of {tokens} tokens, where 1 to {limit} were asked for")
    return Reply(answer.text.strip(), tokens, answer.ended == "stop")
