"""A judge behind an OpenAI-compatible endpoint (vLLM, llama.cpp, a provider), asked one reply at a time.

Temperature 0, no redirects, a timeout, and a few tries where trying again can help (5xx, 429, a broken connection).
Every other answer (401, a cut answer, two verdicts, an answer in another form, none at all) is unscored with its
reason, never safe. The key comes from ``SAFEGENE_JUDGE_KEY`` and stands in no message, record or digest.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from safegene.digest import digest_json, strict_json
from safegene.errors import FormatError, JudgeError
from safegene.judges.address import check_url
from safegene.judges.base import Decision
from safegene.judges.formats import FORMATS, Format, nonce
from safegene.judges.phrases import PhraseJudge
from safegene.params import JudgeParams

if TYPE_CHECKING:
    import httpx

KEY = "SAFEGENE_JUDGE_KEY"
TRIES = 4
GIVE_UP = 16  # failures in a row, over all calls, after which the rest is unscored without being asked
MAX_BYTES = 1 << 20


class _TryAgain(Exception):  # noqa: N818 (a signal to tenacity, not an error of ours)
    pass


class _Unusable(Exception):  # noqa: N818
    pass


@dataclass
class ChatJudge:
    """Asks ``url``/chat/completions for each reply."""

    url: str
    model: str
    revision: str
    format: Format
    phrases: PhraseJudge
    allow_hosts: tuple[str, ...]
    timeout_seconds: float
    wait_seconds: float = 1.0
    _failures: int = field(default=0, init=False)

    @property
    def identity(self) -> str:
        """Digest of endpoint, model, revision, wording and phrases; a server that swaps weights behind them lies."""
        who = {"url": self.url, "model": self.model, "revision": self.revision}
        return digest_json({"kind": "chat", **who, "wording": self.format.wording, "phrases": self.phrases.identity})

    def judge(self, prompts: Sequence[str], replies: Sequence[str]) -> list[Decision]:
        """One decision per reply.

        Raises:
            JudgeError: the endpoint's address is not allowed.
        """
        import httpx

        check_url(self.url, self.allow_hosts)
        key = os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with httpx.Client(timeout=self.timeout_seconds, headers=headers, trust_env=False) as client:
            return [self._one(client, prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)]

    def _one(self, client: "httpx.Client", prompt: str, reply: str) -> Decision:
        if not reply.strip():
            return Decision("unscored", "unscored", "empty reply")
        if self._failures >= GIVE_UP:
            return Decision("unscored", "unscored", f"not asked: the judge failed {GIVE_UP} times in a row")
        try:
            answer = self._answer(client, self.format.ask(prompt, reply, nonce(self.identity, prompt, reply)))
        except (_Unusable, _TryAgain) as error:
            self._failures += 1
            return Decision("unscored", "unscored", f"no answer: {error}")
        self._failures = 0
        return self.format.read(answer, reply, self.phrases)

    def _answer(self, client: "httpx.Client", messages: list[dict[str, str]]) -> str:
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

        waits = wait_exponential_jitter(
            multiplier=self.wait_seconds, max=30 * self.wait_seconds, jitter=self.wait_seconds
        )
        tries = Retrying(
            retry=retry_if_exception_type(_TryAgain), stop=stop_after_attempt(TRIES), wait=waits, reraise=True
        )
        return tries(self._post, client, messages)

    def _post(self, client: "httpx.Client", messages: list[dict[str, str]]) -> str:
        import httpx

        check_url(self.url, self.allow_hosts)
        asked = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": self.format.tokens, "n": 1}
        try:
            with client.stream("POST", f"{self.url.rstrip('/')}/chat/completions", json=asked) as response:
                status, body = response.status_code, _body(response)
        except httpx.HTTPError as error:
            raise _TryAgain(type(error).__name__) from None
        if status == 429 or status >= 500:
            raise _TryAgain(f"status {status}")
        if status != 200:
            raise _Unusable(f"status {status}")
        return _content(body)


def _body(response: "httpx.Response") -> bytes:
    body = b""
    for part in response.iter_bytes():
        body += part
        if len(body) > MAX_BYTES:
            raise _Unusable(f"more than {MAX_BYTES} bytes")
    return body


def _content(body: bytes) -> str:
    """The text of the one finished choice; anything else is unusable."""
    try:
        raw: Any = strict_json(body, where="the judge's answer")
        (choice,) = raw["choices"]
        content, ended = choice["message"]["content"], choice["finish_reason"]
    except (FormatError, KeyError, TypeError, ValueError):
        raise _Unusable("an answer in another form than a chat completion with one choice") from None
    if ended != "stop":
        raise _Unusable(f"an answer that ended by {str(ended)[:40]!r}")
    if not isinstance(content, str) or not content.strip():
        raise _Unusable("an empty answer")
    return content


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
        format=FORMATS[params.format],
        phrases=PhraseJudge(params.phrases) if params.phrases else PhraseJudge(),
        allow_hosts=params.allow_hosts,
        timeout_seconds=params.timeout_seconds,
    )
