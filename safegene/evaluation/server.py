"""Replies of a model behind an OpenAI-compatible server (vLLM, llama.cpp, a provider), asked some at a time.

Laws (tests state them): as many replies as prompts, in their order; a reply that failed is a `Failed` with its reason,
never an empty reply; ``length`` is a cut-off reply; nothing is stopped early, since the protocol has no rule for it.

A server says which name it answers to, and nothing about the weights behind that name. So whoever gates by it must
hold its replies against those of the weights on disk: `disagreement`.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from safegene.errors import SourceError
from safegene.models.address import check_url
from safegene.models.generation import Reply
from safegene.models.openai_api import ApiServer, Completion, NoAnswer, NotAsked

KEY = "SAFEGENE_SERVER_KEY"


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


def generate_on_server(
    server: ModelServer, prompts: Sequence[str], *, max_new_tokens: int
) -> list[Reply | FailedReply]:
    """Greedy replies to ``prompts``, in their order, at most ``server.at_once`` asked at a time.

    Raises:
        JudgeError: the address is not allowed.
        SourceError: the server does not answer, or does not know the model's name.
    """
    api = ApiServer(
        server.url,
        KEY,
        before_request=lambda again: check_url(server.url, server.allow_hosts, whose="server"),
        timeout_seconds=server.timeout_seconds,
        wait_seconds=server.wait_seconds,
    )
    with api.connect() as client, ThreadPoolExecutor(server.at_once) as pool:

        def reply(prompt: str, limit: int) -> Reply:
            turn = [{"role": "user", "content": prompt}]
            request = {"model": server.name, "messages": turn, "temperature": 0, "max_tokens": limit}
            return api.complete(client, request, lambda answer: _reply(answer, limit))

        def reply_or_failure(prompt: str) -> Reply | FailedReply:
            try:
                return reply(prompt, max_new_tokens)
            except NotAsked as error:
                return FailedReply(f"not asked: {error}")
            except NoAnswer as error:
                return FailedReply(f"no reply: {error}")

        names: frozenset[str] = frozenset()
        try:
            names = api.models(client)
            if server.name not in names:  # a server of a local folder may not list its name
                reply(".", 1)
        except NoAnswer as error:
            listed = f", which lists {', '.join(sorted(names)[:5])}" if names else ""
            raise SourceError(
                f"expected the model {server.name!r} of the server at {server.url}, got {error}{listed}"
            ) from None
        return list(pool.map(reply_or_failure, prompts))


def _reply(answer: Completion, limit: int) -> Reply:
    tokens = answer.usage.completion_tokens if answer.usage else None
    if tokens is None or not 0 < tokens <= limit:
        raise NoAnswer(f"an answer of {tokens} tokens, where 1 to {limit} were asked for")
    return Reply(answer.text.strip(), tokens, answer.ended == "stop")


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
