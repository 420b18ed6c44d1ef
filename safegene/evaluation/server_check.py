"""Whether a server serves the weights on disk: its log-probabilities of a few tokens are compared with theirs.

Laws (tests state them): no reply of a model is used unless the server's answers to the probes agreed with the weights
on disk before it, and again after its batch. The probes are prompts of every kind. The weights on disk are read once
per model, one layer at a time (`safegene.models.layered`); afterwards the server is compared with the values that are
kept from then.

A probe is answered with `TOKENS` tokens, greedily. At each of these positions the server states log-probabilities of
its most likely tokens. The weights on disk give those of the same tokens after the same prompt and the same beginning
of the reply, in float32. The difference is the mean of the absolute differences in nats, each at most `MOST`.

Where a server gives no log-probabilities (``transformers serve``), the beginnings of its replies are compared instead.
That tells less: two models that refuse alike begin alike.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from safegene.checkpoints.chat_template import ChatFiles
from safegene.errors import ParamsError, SourceError
from safegene.evaluation.server import FailedReply, ModelServer, generate_on_server, score_on_server
from safegene.evaluation.shared_bases import EvaluatedModel
from safegene.gate import Arm
from safegene.models.forward import next_token_log_probs
from safegene.models.generation import Reply, generate
from safegene.models.openai_api import CandidateToken, ScoredToken
from safegene.models.templates import encode_chat, load_chat_tokenizer
from safegene.workspace.server_params import ServerParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
PROBES = 8  # of a batch, where none are given
TOKENS = 8  # of each probe's reply
KEPT = 512  # most likely tokens of a position whose log-probabilities are kept; others count as the least of them
MOST = 5.0  # nats that one token can differ by, so that a token of almost no probability does not decide alone


@dataclass
class ServedModels:
    """The replies of served models, each checked against the weights on disk.

    Attributes:
        params: the servers' addresses, and the names under which they serve the models.
        probes: user turns of every kind that each model is checked with; by default the first of its first batch.
    """

    params: ServerParams
    probes: Sequence[str] = ()
    _checks: "dict[str, _Check]" = field(default_factory=dict, init=False, repr=False)

    def replies(
        self, arm: Arm, model: EvaluatedModel, texts: Sequence[str], *, max_new_tokens: int
    ) -> list[Reply | FailedReply]:
        """The server's replies to ``texts``, one batch, in their order, if it serves the weights on disk.

        Raises:
            ParamsError: the arm has no name on a server.
            SourceError: the server does not answer, does not know the name, or serves other weights.
        """
        server = self.server(arm)
        if model.digest not in self._checks:
            check = _new_check(server, model, tuple(self.probes) or tuple(texts[:PROBES]))
            check.require(server, self.params)
            self._checks[model.digest] = check
        replies = generate_on_server(server, texts, max_new_tokens=max_new_tokens)
        self._checks[model.digest].require(server, self.params)
        return replies

    def server(self, arm: Arm) -> ModelServer:
        """The server of an arm.

        Raises:
            ParamsError: the arm has no name on a server.
        """
        params = self.params
        if arm not in params.names:
            raise ParamsError(
                f"expected the name of the model {arm} on the server, got none, in evaluate.server.names",
                remedy="`safegene serve-plan TARGET` writes the section",
            )
        url = params.urls.get(arm, params.url)
        return ModelServer(url, params.names[arm], params.allow_hosts, params.timeout_seconds, at_once=params.at_once)


class _Check(Protocol):
    def require(self, server: ModelServer, params: ServerParams) -> None:
        """Raises SourceError where the server's answers to the probes are not those of the weights on disk."""


def _new_check(server: ModelServer, model: EvaluatedModel, probes: Sequence[str]) -> _Check:
    from safegene.models.layered import layered_model

    served = score_on_server(server, probes, tokens=TOKENS)
    weights = layered_model(model.root, model.adapters)
    tokenizer = load_chat_tokenizer(model.chat or ChatFiles(model.root, model.root, model.root))
    if served is None:
        log.warning("%s gives no log-probabilities: the beginnings of replies are compared", server.name)
        return _Beginnings(probes, generate(weights, tokenizer, probes, max_new_tokens=TOKENS, batch_size=len(probes)))
    return _LogProbabilities(probes, _expected(weights, tokenizer, probes, _answered(server, served)))


@dataclass(frozen=True)
class _Beginnings:
    """Compares the first tokens of replies."""

    probes: Sequence[str]
    expected: Sequence[Reply]

    def require(self, server: ModelServer, params: ServerParams) -> None:
        share = disagreement(self.expected, generate_on_server(server, self.probes, max_new_tokens=TOKENS))
        log.info("%s: %.0f%% of the probes' replies begin otherwise", server.name, 100 * share)
        if share > params.max_disagreement:
            raise _other_weights(server, "begin its replies as the weights on disk do", f"{share:.0%} others")


@dataclass(frozen=True)
class _LogProbabilities:
    """Compares log-probabilities with those that were kept."""

    probes: Sequence[str]
    expected: "Sequence[_Expected]"

    def require(self, server: ModelServer, params: ServerParams) -> None:
        served = score_on_server(server, self.probes, tokens=TOKENS)
        if served is None:
            raise _other_weights(server, "give log-probabilities, as before", "none")
        pairs = list(zip(self.expected, _answered(server, served), strict=True))
        each = [expected.differences(tokens) for expected, tokens in pairs]
        if sum(map(bool, each)) * 2 < len(each):
            raise _other_weights(server, "answer the probes with tokens", f"tokens for {sum(map(bool, each))}")
        values = [value for one in each for value in one]
        mean = sum(values) / len(values)
        log.info("%s: log-probabilities of %d tokens differ by %.3f nats", server.name, len(values), mean)
        if not mean <= params.max_logprob_difference:
            raise _other_weights(
                server,
                f"give the log-probabilities of the weights on disk within {params.max_logprob_difference:g} nats",
                f"{mean:.2f} nats on average over {len(values)} tokens",
            )


@dataclass(frozen=True)
class _Expected:
    """What the weights on disk say about one probe.

    Attributes:
        ids: the first tokens of the server's first reply.
        positions: for each position, token id -> log-probability after the prompt and the tokens before it.
        vocabulary: how the server's tokens are read.
    """

    ids: Sequence[int]
    positions: Sequence[Mapping[int, float]]
    vocabulary: "_Vocabulary"

    def differences(self, served: Sequence[ScoredToken]) -> list[float]:
        """Absolute differences in nats, of every token of every position up to where the reply is another."""
        found: list[float] = []
        for at, (token, position) in enumerate(zip(served, self.positions, strict=False)):
            texts: set[str] = set()
            for candidate in token.top_logprobs or (token,):
                if candidate.token and candidate.token not in texts:  # a text of two tokens: the likelier one
                    found.append(self._difference(candidate, position))
                texts.add(candidate.token)
            if at >= len(self.ids) or self.ids[at] not in self.vocabulary.ids(token):
                break
        return found

    def _difference(self, candidate: CandidateToken, position: Mapping[int, float]) -> float:
        least = min(position.values())
        known = [position.get(token, least) for token in self.vocabulary.ids(candidate)]
        return min(MOST, abs(candidate.logprob - max(known))) if known else MOST


def _expected(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    probes: Sequence[str],
    served: Sequence[Sequence[ScoredToken]],
) -> list[_Expected]:
    """One forward pass over every probe with the beginning of the server's reply."""
    vocabulary = _Vocabulary(tokenizer)
    replies = [vocabulary.sequence(tokens) for tokens in served]
    counts = [min(len(ids) + 1, max(1, len(tokens))) for ids, tokens in zip(replies, served, strict=True)]
    rows = [
        [*encode_chat(tokenizer, probe), *ids[: count - 1]]
        for probe, ids, count in zip(probes, replies, counts, strict=True)
    ]
    with torch.inference_mode():
        values = next_token_log_probs(model, rows, max(counts))
    expected = []
    for ids, count, value in zip(replies, counts, values, strict=True):
        top = value[-count:].topk(min(KEPT, value.shape[-1]))
        positions = [
            dict(zip(row.tolist(), of.tolist(), strict=True)) for row, of in zip(top.indices, top.values, strict=True)
        ]
        expected.append(_Expected(ids, positions, vocabulary))
    return expected


class _Vocabulary:
    """Reads a server's tokens: by id, by ``token_id:N`` (vLLM's --return-tokens-as-token-ids), or by text."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, list[int]] = defaultdict(list)
        for name, token in tokenizer.get_vocab().items():
            for text in {name, str(tokenizer.decode([token]))}:
                self._ids[text].append(token)

    def ids(self, token: CandidateToken) -> Sequence[int]:
        """The ids that a token may have; several where several tokens read alike, none for an unknown one."""
        if token.id is not None:
            return (token.id,)
        prefix, _, number = token.token.partition("token_id:")
        if not prefix and number.isascii() and number.isdigit():
            return (int(number),)
        return self._ids.get(token.token, ())

    def sequence(self, tokens: Sequence[ScoredToken]) -> list[int]:
        """The ids of a reply, up to the first token that its text does not determine."""
        text = "".join(token.token for token in tokens)
        encoded = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        found: list[int] = []
        for at, token in enumerate(tokens):
            ids = self.ids(token)
            if len(ids) != 1:
                ids = [one for one in ids if encoded[: at + 1] == [*found, one]]
            if len(ids) != 1:
                break
            found.append(ids[0])
        return found


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


def _answered(
    server: ModelServer, served: Sequence[tuple[ScoredToken, ...] | FailedReply]
) -> list[tuple[ScoredToken, ...]]:
    answers = []
    for one in served:
        if isinstance(one, FailedReply):
            raise SourceError(f"expected {server.name!r} at {server.url} to answer every probe, got {one.reason}")
        answers.append(one)
    return answers


def _other_weights(server: ModelServer, expected: str, got: str) -> SourceError:
    return SourceError(
        f"expected {server.name!r} at {server.url} to {expected}, got {got}",
        remedy="serve this very model under that name, with its chat template (see `safegene serve-plan TARGET`), "
        "or take evaluate.server out",
    )
