"""A judge behind an OpenAI-compatible endpoint (vLLM, llama.cpp, a provider), asked one reply at a time.

Temperature 0, seed 0, no redirects, a deadline, and a few tries where trying again can help (5xx, 429, a broken
connection); ``Retry-After`` is obeyed up to a minute, and a judge that wants longer is not asked again for that reply.
Every other answer (401, a cut answer, two verdicts, an answer in another form, none at all) is unscored with its
reason, never safe. The key comes from ``SAFEGENE_JUDGE_KEY`` and stands in no message, record or digest.

The answer's ``model`` MUST be the model asked for, or that name followed by its date (``NAME-2024-08-06``,
``NAME@20240806``, ``NAME-0613``), as providers resolve an alias; any other name, longer or shorter, may be another
model (``NAME-mini``), so it is unscored. All answers MUST come from one such model: where a provider moves the alias
during a run, the rest is unscored. Ask for the dated name, and neither can happen.
"""

import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from safegene.errors import FormatError, JudgeError
from safegene.evaluation.judges.base import JudgeDecision
from safegene.evaluation.judges.formats import ANSWER_FORMATS, AnswerFormat, Messages, nonce
from safegene.evaluation.judges.meter import BudgetSpent, Meter, TokenPrice
from safegene.evaluation.judges.phrases import PhraseJudge
from safegene.evaluation.judges.phrases import build as phrase_judge
from safegene.models.address import check_url
from safegene.workspace.digest import canonical_json, digest_json, strict_json
from safegene.workspace.params import JudgeParams

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState

KEY = "SAFEGENE_JUDGE_KEY"
TRIES = 4
GIVE_UP = 16  # failures in a row, over all calls, after which the rest is unscored without being asked
MAX_BYTES = 1 << 20
LONGEST_WAIT = 60.0  # seconds that a Retry-After may ask for
DECODING = {"temperature": 0, "seed": 0, "n": 1}
_DATED = re.compile(r"[-@:](?:\d{4}(?:-?\d{2}){0,2}|\d{6})", re.ASCII)


class _TryAgain(Exception):  # noqa: N818 (a signal to tenacity, not an error of ours)
    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


class _Unusable(Exception):  # noqa: N818
    pass


@dataclass
class ChatJudge:
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
    _failures: int = field(default=0, init=False)
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
    def cost(self) -> TokenPrice:
        """What this judge has spent so far, over all calls."""
        return self.meter.cost

    def judge(self, prompts: Sequence[str], replies: Sequence[str]) -> list[JudgeDecision]:
        """One decision per reply.

        Raises:
            JudgeError: the endpoint's address is not allowed.
        """
        import httpx

        check_url(self.url, self.allow_hosts)
        key, pairs = os.environ.get(KEY), list(zip(prompts, replies, strict=True))
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        with (
            httpx.Client(timeout=self.timeout_seconds, headers=headers, trust_env=False) as client,
            ThreadPoolExecutor(self.concurrency) as pool,
        ):
            return list(pool.map(lambda pair: self._one(client, *pair), pairs))

    def _one(self, client: "httpx.Client", prompt: str, reply: str) -> JudgeDecision:
        if not reply.strip():
            return JudgeDecision("unscored", "unscored", "empty reply")
        try:
            mark = nonce(self.identity, prompt, reply)
        except UnicodeEncodeError:
            return JudgeDecision("unscored", "unscored", "not asked: half a character in the prompt or reply")
        if self._failures >= GIVE_UP:
            return JudgeDecision("unscored", "unscored", f"not asked: the judge failed {GIVE_UP} times in a row")
        try:
            answer = self._answer(client, self.format.ask(prompt, reply, mark))
        except BudgetSpent as error:
            return JudgeDecision("unscored", "unscored", f"not asked: {error}")
        except (_Unusable, _TryAgain) as error:
            with self._lock:
                self._failures += 1
            return JudgeDecision("unscored", "unscored", f"no answer: {error}")
        with self._lock:
            self._failures = 0
        if mark in answer.casefold():
            return JudgeDecision("unscored", "unscored", f"the answer repeats the marks of the reply: {answer[:300]!r}")
        return self.format.read(answer, reply, self.phrases)

    def _answer(self, client: "httpx.Client", messages: Messages) -> str:
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

        backoff = wait_exponential_jitter(
            multiplier=self.wait_seconds, max=30 * self.wait_seconds, jitter=self.wait_seconds
        )

        def wait(state: "RetryCallState") -> float:
            error = state.outcome.exception() if state.outcome else None
            return max(backoff(state), error.after if isinstance(error, _TryAgain) else 0.0)

        tries = Retrying(
            retry=retry_if_exception_type(_TryAgain),
            stop=stop_after_attempt(TRIES),
            wait=wait,
            sleep=self.meter.sleep,
            reraise=True,
        )
        for attempt in tries:
            with attempt:
                return self._post(client, messages, again=attempt.retry_state.attempt_number > 1)
        raise AssertionError("tenacity gives an answer or raises")

    def _post(self, client: "httpx.Client", messages: Messages, *, again: bool) -> str:
        import httpx

        check_url(self.url, self.allow_hosts)
        asked: dict[str, Any] = {"model": self.model, "messages": messages, "max_tokens": self.format.tokens}
        asked |= DECODING | ({"chat_template_kwargs": dict(self.format.template)} if self.format.template else {})
        self.meter.admit(again=again)
        until = self.meter.clock() + self.timeout_seconds
        try:
            with client.stream("POST", f"{self.url.rstrip('/')}/chat/completions", json=asked) as response:
                status, after, body = response.status_code, _retry_after(response), self._body(response, until)
        except httpx.HTTPError as error:
            raise _TryAgain(type(error).__name__) from None
        if after > LONGEST_WAIT:
            raise _Unusable(f"status {status}, to be asked again in {after:.0f} s only")
        if status == 429 or status >= 500:
            raise _TryAgain(f"status {status}", after)
        if status != 200:
            raise _Unusable(f"status {status}")
        return self._content(body, len(canonical_json(asked)))

    def _body(self, response: "httpx.Response", until: float) -> bytes:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise _Unusable("a compressed answer, which was not asked for")
        body = b""
        for part in response.iter_raw():
            body += part
            if len(body) > MAX_BYTES:
                raise _Unusable(f"more than {MAX_BYTES} bytes")
            if self.meter.clock() > until:
                raise _TryAgain(f"slower than {self.timeout_seconds:g} s")
        return body

    def _content(self, body: bytes, asked_bytes: int) -> str:
        """The text of the one finished choice of the model asked; anything else is unusable."""
        try:
            raw: Any = strict_json(body.decode("utf-8"), where="the judge's answer")
            usage = raw.get("usage")
        except (FormatError, UnicodeDecodeError, AttributeError):
            raw = usage = None
        self.meter.used(usage, asked_bytes=asked_bytes, answer_tokens=self.format.tokens)
        try:
            (choice,) = raw["choices"]
            content, ended, model = choice["message"]["content"], choice["finish_reason"], raw["model"]
        except (KeyError, TypeError, ValueError):
            raise _Unusable("an answer in another form than a chat completion of a model, with one choice") from None
        self._check_model(model)
        if ended != "stop" and not (ended == "length" and self.format.first_token):
            raise _Unusable(f"an answer that ended by {str(ended)[:40]!r}")
        if not isinstance(content, str) or not content.strip():
            raise _Unusable("an empty answer")
        return content

    def _check_model(self, model: Any) -> None:
        named = isinstance(model, str) and model.startswith(self.model)
        if not named or (model != self.model and not _DATED.fullmatch(model.removeprefix(self.model))):
            raise _Unusable(f"an answer of the model {str(model)[:80]!r}, asked was {self.model!r}")
        with self._lock:
            self._answered = self._answered or model
            if model != self._answered:
                raise _Unusable(f"an answer of the model {model[:80]!r}, before it was {self._answered[:80]!r}")


def _retry_after(response: "httpx.Response") -> float:
    """Seconds until the endpoint wants to be asked again; 0 where it does not say so in a form that HTTP knows."""
    said = response.headers.get("Retry-After", "").strip()
    if said.isascii() and said.isdigit():
        return float(said[:9])
    try:
        at = parsedate_to_datetime(said)
        return max(0.0, (at - datetime.now(at.tzinfo or UTC)).total_seconds()) if at.tzinfo else 0.0
    except (ValueError, OverflowError):
        return 0.0


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
