"""Chat completions of an OpenAI-compatible server: greedy, one choice, strictly read, tried again where that can help.

Temperature 0, no redirects, no proxy of the environment, a timeout, a limit on bytes. A broken connection, 429 and 5xx
are tried again; every other answer that is not one finished or cut choice with text is `NoAnswer` with its reason. The
key comes from an environment variable and stands in no message.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from safegene.errors import FormatError
from safegene.workspace.digest import strict_json

if TYPE_CHECKING:
    import httpx

TRIES = 4
MAX_BYTES = 4 << 20
T = TypeVar("T")


class NoAnswer(Exception):
    """The server gave no usable answer; says why."""


class _TryAgain(NoAnswer):
    """It may give one later."""


@dataclass(frozen=True)
class Completion:
    """One choice: its text, whether it ended itself (``stop``) or was cut (``length``), and its tokens."""

    text: str
    ended: Literal["stop", "length"]
    tokens: int


@dataclass(frozen=True)
class ApiServer:
    """A server at ``url`` (such as https://host/v1); ``check`` is called before every request and may refuse it."""

    url: str
    key: str
    check: Callable[[], None]
    timeout_seconds: float = 60.0
    wait_seconds: float = 1.0

    @contextmanager
    def client(self) -> Iterator["httpx.Client"]:
        """Connections to the server; they may be used by several threads."""
        import httpx

        key = os.environ.get(self.key)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with httpx.Client(timeout=self.timeout_seconds, headers=headers, trust_env=False) as client:
            yield client

    def models(self, client: "httpx.Client") -> frozenset[str]:
        """The names that the server answers to.

        Raises:
            NoAnswer: it does not say.
        """
        return self._tried(lambda: _names(self._asked(client, "GET", "models")))

    def complete(
        self, client: "httpx.Client", model: str, messages: Sequence[Mapping[str, str]], max_tokens: int
    ) -> Completion:
        """The model's greedy answer.

        Raises:
            NoAnswer: there is none, or not in the form of one choice with text and a count of tokens.
        """
        ask = {"model": model, "messages": list(messages), "temperature": 0, "max_tokens": max_tokens}
        return self._tried(lambda: _answer(self._asked(client, "POST", "chat/completions", ask), max_tokens))

    def _tried(self, ask: Callable[[], T]) -> T:
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

        wait = wait_exponential_jitter(
            multiplier=self.wait_seconds, max=30 * self.wait_seconds, jitter=self.wait_seconds
        )
        again = retry_if_exception_type(_TryAgain)
        return Retrying(retry=again, stop=stop_after_attempt(TRIES), wait=wait, reraise=True)(ask)

    def _asked(self, client: "httpx.Client", method: str, path: str, ask: Mapping[str, Any] | None = None) -> Any:
        import httpx

        self.check()
        body = b""
        try:
            with client.stream(method, f"{self.url.rstrip('/')}/{path}", json=ask) as response:
                status = response.status_code
                for part in response.iter_bytes():
                    body += part
                    if len(body) > MAX_BYTES:
                        raise NoAnswer(f"more than {MAX_BYTES} bytes")
        except httpx.HTTPError as error:
            raise _TryAgain(type(error).__name__) from None
        if status == 429 or status >= 500:
            raise _TryAgain(f"status {status}")
        if status != 200:
            raise NoAnswer(f"status {status}")
        try:
            return strict_json(body, where="the server's answer")
        except FormatError:
            raise NoAnswer("an answer that is not JSON") from None


def _names(raw: Any) -> frozenset[str]:
    try:
        return frozenset(str(one["id"]) for one in raw["data"])
    except (KeyError, TypeError):
        raise NoAnswer("a list of models in another form") from None


def _answer(raw: Any, limit: int) -> Completion:
    try:
        (choice,) = raw["choices"]
        text, ended, tokens = choice["message"]["content"], choice["finish_reason"], raw["usage"]["completion_tokens"]
    except (KeyError, TypeError, ValueError):
        raise NoAnswer("an answer in another form than a chat completion with one choice and its usage") from None
    if ended not in ("stop", "length"):
        raise NoAnswer(f"an answer that ended by {str(ended)[:40]!r}")
    if not isinstance(text, str) or not text.strip():
        raise NoAnswer("an empty answer")
    if not isinstance(tokens, int) or isinstance(tokens, bool) or not 0 < tokens <= limit:
        raise NoAnswer(f"an answer of {str(tokens)[:20]} tokens, where 1 to {limit} were asked for")
    return Completion(text.strip(), ended, tokens)
