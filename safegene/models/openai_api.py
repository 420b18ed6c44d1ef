"""A client of OpenAI-compatible servers (vLLM, llama.cpp, a provider): the only one that safegene has.

Each request has a deadline, from the connection to the last byte of the answer, and a limit on bytes, follows no
redirect and uses no proxy of the environment. A broken connection, a deadline that has passed, 429 and 5xx are tried
again, after the wait that ``Retry-After`` asks for (seconds or a date, up to `LONGEST_WAIT`), else after an exponential
backoff. Every other failure raises `NoAnswer` at once. So a request takes at most `TRIES` deadlines and the waits
between them. After `GIVE_UP` failures in a row nothing more is sent. The key comes from an environment variable; no
message, repr or log holds it.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import (
    ConfigDict,
    FiniteFloat,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from safegene.errors import FormatError
from safegene.workspace.deadline import DeadlinePassed, within
from safegene.workspace.digest import canonical_json
from safegene.workspace.fields import Count
from safegene.workspace.parsing import Strict, parse_json

if TYPE_CHECKING:
    import httpx

TRIES = 4
GIVE_UP = 16  # failures in a row, over all threads
MAX_BYTES = 1 << 20
LONGEST_WAIT = 60.0  # seconds
_JSON = {"Content-Type": "application/json"}
T = TypeVar("T")


class NoAnswer(Exception):  # noqa: N818 (callers turn it into a value)
    """The server gave no usable answer; the text says why."""


class NotAsked(Exception):  # noqa: N818
    """The request was not sent; the text says why."""


class _TryAgain(NoAnswer):
    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class _Reply(Strict):
    """A part of a server's reply; keys that are not needed are ignored."""

    model_config = ConfigDict(extra="ignore")


class Usage(_Reply):
    """The tokens of one request, as the server counts them."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None


def _valid_or_none(value: Any, parse: ValidatorFunctionWrapHandler) -> Any:
    try:
        return parse(value)
    except ValidationError:
        return None


class _Message(_Reply):
    content: Annotated[str, StringConstraints(pattern=r"\S")]


class _Choice(_Reply):
    message: _Message
    finish_reason: Literal["stop", "length"]


class Completion(_Reply):
    """An answer: one choice that is not empty. Model and usage are None where the server does not report them."""

    choices: tuple[_Choice]
    model: str | None = None
    usage: Annotated[Usage | None, WrapValidator(_valid_or_none)] = None

    @property
    def text(self) -> str:
        """The text of the choice."""
        return self.choices[0].message.content

    @property
    def ended(self) -> Literal["stop", "length"]:
        """``stop`` where the model ended the text, ``length`` where ``max_tokens`` cut it off."""
        return self.choices[0].finish_reason


class CandidateToken(_Reply):
    """A token that could have come next. ``id`` is None where the server names tokens by their text only."""

    token: str
    logprob: FiniteFloat
    id: Annotated[Count | None, WrapValidator(_valid_or_none)] = None


class ScoredToken(CandidateToken):
    """A token of a reply, and the most likely ones in its place."""

    top_logprobs: tuple[CandidateToken, ...]


class _Scores(_Reply):
    content: tuple[ScoredToken, ...]


class _ScoredChoice(_Reply):
    logprobs: _Scores | None = None


class ScoredCompletion(_Reply):
    """The log-probabilities of an answer's tokens; its text may be empty."""

    choices: tuple[_ScoredChoice]

    @property
    def tokens(self) -> tuple[ScoredToken, ...] | None:
        """The tokens of the answer; None where the server gives no log-probabilities."""
        scores = self.choices[0].logprobs
        return None if scores is None else scores.content


class _Model(_Reply):
    id: str


class _Models(_Reply):
    data: tuple[_Model, ...]


@dataclass
class ApiServer:
    """A server, and how it is asked; several threads may use it.

    Attributes:
        url: such as ``https://host/v1``.
        key: the environment variable that holds the API key.
        before_request: called before every request, tries included, with whether it repeats one; may raise.
        on_usage: called for every reply to a completion with its usage, if any, and the bytes of the request.
        timeout_seconds: of one request, until the last byte of its reply.
        wait_seconds: before the second try; later waits grow from it.
        sleep: waits for some seconds.
    """

    url: str
    key: str
    before_request: Callable[[bool], None]
    on_usage: Callable[[Usage | None, int], None] = lambda usage, asked_bytes: None
    timeout_seconds: float = 60.0
    wait_seconds: float = 1.0
    sleep: Callable[[float], None] = time.sleep
    _failures: int = field(default=0, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @contextmanager
    def connect(self) -> Iterator["httpx.Client"]:
        """Connections to the server."""
        import httpx

        key = os.environ.get(self.key)
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        with httpx.Client(timeout=self.timeout_seconds, headers=headers, trust_env=False) as client:
            yield client

    def models(self, client: "httpx.Client") -> frozenset[str]:
        """The names of the models that the server lists.

        Raises:
            NoAnswer: it lists none.
        """
        body = self._request(client, "GET", "models", None)
        return frozenset(model.id for model in _parsed(_Models, body).data)

    def complete(self, client: "httpx.Client", request: Mapping[str, Any], read: Callable[[Completion], T]) -> T:
        """Ask for a chat completion and read the answer.

        Args:
            client: what `connect` gave.
            request: the JSON body.
            read: the value to return for an answer; raises NoAnswer for one that is not usable.

        Raises:
            NoAnswer: there is no usable answer.
            NotAsked: `GIVE_UP` failures in a row came before.
        """
        return self._counted(lambda: read(self._completion(client, request)))

    def score(self, client: "httpx.Client", request: Mapping[str, Any]) -> ScoredCompletion:
        """Ask for a chat completion with log-probabilities. Arguments and errors as of `complete`."""
        return self._counted(
            lambda: _parsed(ScoredCompletion, self._request(client, "POST", "chat/completions", request))
        )

    def _counted(self, ask: Callable[[], T]) -> T:
        if self._failures >= GIVE_UP:
            raise NotAsked(f"{GIVE_UP} requests in a row failed")
        try:
            value = ask()
        except NoAnswer:
            with self._lock:
                self._failures += 1
            raise
        with self._lock:
            self._failures = 0
        return value

    def _completion(self, client: "httpx.Client", request: Mapping[str, Any]) -> Completion:
        body, asked_bytes = self._request(client, "POST", "chat/completions", request), len(canonical_json(request))
        try:
            completion = _parsed(Completion, body)
        except NoAnswer:
            self.on_usage(None, asked_bytes)
            raise
        self.on_usage(completion.usage, asked_bytes)
        return completion

    def _request(self, client: "httpx.Client", method: str, path: str, json: Any) -> bytes:
        import tenacity

        unit = self.wait_seconds
        backoff = tenacity.wait_exponential_jitter(multiplier=unit, max=30 * unit, jitter=unit)
        retrying = tenacity.Retrying(
            before=lambda state: self.before_request(state.attempt_number > 1),
            retry=tenacity.retry_if_exception_type(_TryAgain),
            stop=tenacity.stop_after_attempt(TRIES),
            wait=backoff + tenacity.wait_exception(lambda error: getattr(error, "wait", 0.0)),
            sleep=self.sleep,
            reraise=True,
        )
        return retrying(self._try, client, method, path, json)

    def _try(self, client: "httpx.Client", method: str, path: str, json: Any) -> bytes:
        import httpx

        def exchange() -> bytes:
            with client.stream(method, f"{self.url.rstrip('/')}/{path}", content=body, headers=_JSON) as response:
                _check_status(response)
                return _body(response, until)

        try:
            body = None if json is None else canonical_json(json)
        except FormatError as error:
            raise NoAnswer(f"a request that cannot be sent: {error}") from None
        until = time.monotonic() + self.timeout_seconds
        try:
            return within(self.timeout_seconds, exchange)
        except httpx.HTTPError as error:
            raise _TryAgain(type(error).__name__) from None
        except DeadlinePassed as error:
            raise _TryAgain(str(error)) from None


def _body(response: "httpx.Response", until: float) -> bytes:
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise NoAnswer("a compressed answer, which was not asked for")
    body = b""
    for part in response.iter_raw():
        body += part
        if len(body) > MAX_BYTES:
            raise NoAnswer(f"more than {MAX_BYTES} bytes")
        if time.monotonic() > until:
            raise DeadlinePassed("a late answer")  # ends a call that was abandoned
    return body


def _check_status(response: "httpx.Response") -> None:
    status = response.status_code
    if status == 429 or status >= 500:
        wait = _retry_after(response.headers.get("Retry-After", ""))
        if wait > LONGEST_WAIT:
            raise NoAnswer(f"status {status}, to be asked again in {wait:.0f} s only")
        raise _TryAgain(f"status {status}", wait)
    if status != 200:
        raise NoAnswer(f"status {status}")


def _retry_after(value: str) -> float:
    """The seconds that a ``Retry-After`` header asks for; 0 without one, or where it has another form than HTTP's."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        at = parsedate_to_datetime(value)
        return max(0.0, (at - datetime.now(UTC)).total_seconds()) if at.tzinfo else 0.0
    except (ValueError, OverflowError):
        return 0.0


def _parsed(model: type[T], body: bytes) -> T:
    try:
        return parse_json(model, body.decode(), where="the server's answer")
    except (FormatError, UnicodeDecodeError) as error:
        raise NoAnswer(str(error)) from None
