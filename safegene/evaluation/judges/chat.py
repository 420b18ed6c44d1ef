"""A judge behind an OpenAI-compatible endpoint, asked one reply at a time with temperature 0 and seed 0.

`safegene.models.openai_api` sends the requests and says which of them it repeats. A reply without a usable answer
(status 401, an answer that was cut off, two verdicts, another form) is unscored with the reason, never safe. The key
comes from ``SAFEGENE_JUDGE_KEY`` and is in no message, record or digest.

The answer's ``model`` MUST be the model asked for, or that name followed by a date (``NAME-2024-08-06``,
``NAME@20240806``, ``NAME-0613``), as providers resolve an alias; an answer of any other name (``NAME-mini``) is
unscored. All answers MUST come from one such model: where a provider moves the alias during a run, the rest is
unscored. Ask for the dated name to exclude this.
"""

import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from safegene.errors import FormatError, JudgeError
from safegene.evaluation.judges.base import Judge, JudgeDecision
from safegene.evaluation.judges.formats import ANSWER_FORMATS, AnswerFormat, nonce
from safegene.evaluation.judges.meter import JudgeCost, Meter
from safegene.evaluation.judges.phrases import PhraseJudge
from safegene.evaluation.judges.phrases import build as phrase_judge
from safegene.models.address import check_url
from safegene.models.openai_api import ApiServer, Completion, NoAnswer, NotAsked
from safegene.workspace.digest import digest_json
from safegene.workspace.params import JudgeParams

if TYPE_CHECKING:
    import httpx

KEY = "SAFEGENE_JUDGE_KEY"
DECODING = {"temperature": 0, "seed": 0, "n": 1}
_DATED = re.compile(r"[-@:](?:\d{4}(?:-?\d{2}){0,2}|\d{6})", re.ASCII)


@dataclass
class ChatJudge(Judge):
    """Asks ``url``/chat/completions for each reply."""

    url: str
    model: str
    revision: str
    format: AnswerFormat
    phrases: PhraseJudge
    allow_hosts: tuple[str, ...]
    timeout_seconds: float
    wait_seconds: float = 1.0
    concurrency: int = 1
    meter: Meter = field(default_factory=Meter)
    _answered: str | None = field(default=None, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @property
    def identity(self) -> str:
        """Digest of endpoint, model, revision, decoding, wording and phrases.

        A server that swaps the weights behind these names lies.
        """
        who = {"url": self.url, "model": self.model, "revision": self.revision, "decoding": DECODING}
        return digest_json({"kind": "chat", **who, "wording": self.format.wording, "phrases": self.phrases.identity})

    @property
    def cost(self) -> JudgeCost:
        """What this judge has spent so far, over all calls."""
        return self.meter.cost

    def judge(self, prompts: Sequence[str], replies: Sequence[str]) -> list[JudgeDecision]:
        """One decision per reply.

        Raises:
            JudgeError: the endpoint's address is not allowed.
        """
        check_url(self.url, self.allow_hosts)
        pairs = list(zip(prompts, replies, strict=True))
        with self._server.connect() as client, ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(lambda pair: self._decision(client, *pair), pairs))

    @cached_property
    def _server(self) -> ApiServer:
        return ApiServer(
            self.url,
            KEY,
            self._before_request,
            lambda usage, sent: self.meter.used(usage, asked_bytes=sent, answer_tokens=self.format.tokens),
            self.timeout_seconds,
            self.wait_seconds,
            self.meter.sleep,
        )

    def _before_request(self, again: bool) -> None:
        check_url(self.url, self.allow_hosts)
        self.meter.admit(again=again)

    def _decision(self, client: "httpx.Client", prompt: str, reply: str) -> JudgeDecision:
        if not reply.strip():
            return JudgeDecision("unscored", "unscored", "empty reply")
        try:
            mark = nonce(self.identity, prompt, reply)
        except FormatError:
            return JudgeDecision("unscored", "unscored", "not asked: a lone surrogate in the prompt or reply")
        request: dict[str, Any] = {"model": self.model, "messages": self.format.ask(prompt, reply, mark)}
        request |= {"max_tokens": self.format.tokens} | DECODING
        request |= {"chat_template_kwargs": dict(self.format.template)} if self.format.template else {}
        try:
            answer = self._server.complete(client, request, self._text)
        except NotAsked as error:
            return JudgeDecision("unscored", "unscored", f"not asked: {error}")
        except NoAnswer as error:
            return JudgeDecision("unscored", "unscored", f"no answer: {error}")
        if mark in answer.casefold():
            return JudgeDecision("unscored", "unscored", f"the answer repeats the marks of the reply: {answer[:300]!r}")
        return self.format.read(answer, reply, self.phrases)

    def _text(self, answer: Completion) -> str:
        """The text of a complete answer of the model asked for."""
        name = answer.model or ""
        dated = name.startswith(self.model) and _DATED.fullmatch(name.removeprefix(self.model))
        if name != self.model and not dated:
            raise NoAnswer(f"an answer of the model {name[:80]!r}, asked was {self.model!r}")
        with self._lock:
            self._answered = self._answered or name
        if name != self._answered:
            raise NoAnswer(f"an answer of the model {name[:80]!r}, before it was {self._answered!r}")
        if answer.ended == "length" and not self.format.first_token:
            raise NoAnswer("an answer that ended by 'length'")
        return answer.text


def build(params: JudgeParams) -> ChatJudge:
    """The judge at ``params.url``.

    Raises:
        JudgeError: url or model is missing, or the address is not allowed.
    """
    if not params.url or not params.model:
        lacking = "url" if not params.url else "model"
        raise JudgeError(
            f"expected url and model for the chat judge, got no {lacking}, in evaluate.judge",
            remedy="set evaluate.judge.url (such as https://host/v1) and evaluate.judge.model",
        )
    check_url(params.url, params.allow_hosts)
    return ChatJudge(
        url=params.url,
        model=params.model,
        revision=params.revision or "",
        format=ANSWER_FORMATS[params.format],
        phrases=phrase_judge(params),
        allow_hosts=params.allow_hosts,
        timeout_seconds=params.timeout_seconds,
        concurrency=params.concurrency,
        meter=Meter(params.requests_per_minute, params.max_requests, params.max_tokens),
    )
