"""Replies of a model behind an OpenAI-compatible server (vLLM, llama.cpp, a provider), several at a time.

Laws (tests state them): as many replies as prompts, in their order; a request that failed is a `FailedReply` with its
reason, never an empty reply; a reply that ended by ``length`` was cut off. No reply is stopped early, since the
protocol has no rule for it.

A server states the name of a model and nothing about its weights. So `served_replies` compares the first replies of
every batch with those of the weights on disk.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safegene.errors import ParamsError, SourceError
from safegene.gate import Arm
from safegene.models.address import check_url
from safegene.models.generation import Reply, generate
from safegene.models.openai_api import ApiServer, Completion, NoAnswer, NotAsked
from safegene.workspace.params import ServerParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KEY = "SAFEGENE_SERVER_KEY"
COMPARED, BEGINNING = 4, 8  # replies of a batch that are compared with the server's, and tokens of each


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
    """Share of prompts whose served reply differs from that of the weights on disk; a failed reply differs.

    Rounding can change a greedy reply at a token where two are about equally likely, so some disagreement is normal.
    Two different models agree on little but refusals, so replies to harmful prompts tell least.

    Raises:
        ValueError: there is nothing to compare.
    """
    same = [
        isinstance(reply, Reply) and reply.text.split() == expected.text.split()
        for expected, reply in zip(local, served, strict=True)
    ]
    if not same:
        raise ValueError("expected replies to compare, got none")
    return 1 - sum(same) / len(same)


def served_replies(
    params: ServerParams,
    arm: Arm,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    *,
    max_new_tokens: int,
) -> list[Reply | FailedReply]:
    """The server's replies to ``texts``, one batch, in their order, if it serves the weights on disk.

    The first `COMPARED` replies of the batch are also made from the weights on disk, `BEGINNING` tokens each, and must
    agree with the server's but for a share of ``max_disagreement``. Every batch is checked so, whatever the kind of its
    prompts. On harmful prompts two different models may agree, if both begin with the same refusal, so there the check
    tells little; on tasks and look-alikes they rarely agree. Rounding makes some replies of the same model differ.

    Args:
        params: the server's address, and the names under which it serves the models.
        arm: the model that is asked.
        model: the same model from the weights on disk.
        tokenizer: its tokenizer.
        texts: user turns of one batch.
        max_new_tokens: the longest reply.

    Raises:
        ParamsError: the arm has no name on the server.
        SourceError: the server does not answer, does not know the name, or its replies begin otherwise than those of
            the weights on disk.
    """
    if arm not in params.names:
        raise ParamsError(f"expected the name of the model {arm} on the server, got none, in evaluate.server.names")
    name = params.names[arm]
    server = ModelServer(params.url, name, params.allow_hosts, params.timeout_seconds, at_once=params.at_once)
    local = generate(model, tokenizer, texts[:COMPARED], max_new_tokens=BEGINNING, batch_size=COMPARED)
    share = disagreement(local, generate_on_server(server, texts[:COMPARED], max_new_tokens=BEGINNING))
    if share > params.max_disagreement:
        raise SourceError(
            f"expected {name!r} at {params.url} to begin its replies as the weights on disk do, got {share:.0%} others",
            remedy="serve this very model under that name in the same dtype, or take evaluate.server out",
        )
    return generate_on_server(server, texts, max_new_tokens=max_new_tokens)
