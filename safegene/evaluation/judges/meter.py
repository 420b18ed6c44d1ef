"""The cost, the request rate and the budget of a remote judge.

Law: the budgets are checked before every request, repeated ones included. So no request is sent beyond
``max_requests``, and only requests already under way (at most ``concurrency``) can exceed ``max_tokens``. An answer
without a token count is counted with an upper bound: a token is at least one byte of the question.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from safegene.models.openai_api import NotAsked, Usage


@dataclass(frozen=True)
class JudgeCost:
    """What was spent so far.

    Attributes:
        requests: HTTP requests, repeated ones included.
        retries: repeated requests.
        prompt_tokens: tokens of the questions, as the server counted them.
        completion_tokens: tokens of the answers, as the server counted them.
        estimated: answers without a token count, which are counted with an upper bound.
    """

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: int = 0

    def __str__(self) -> str:
        upper = f" ({self.estimated} answers counted with an upper bound)" if self.estimated else ""
        tokens = f"{self.prompt_tokens} tokens asked, {self.completion_tokens} answered"
        return f"{self.requests} requests, {self.retries} of them again, {tokens}{upper}"


class BudgetSpent(NotAsked):
    """A budget is spent; the message says which."""


@dataclass
class Meter:
    """Counts, budgets and the rate limit of one judge; safe to use from many threads."""

    requests_per_minute: float | None = None
    max_requests: int | None = None
    max_tokens: int | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _cost: JudgeCost = field(default_factory=JudgeCost, init=False)
    _free_at: float = field(default=0.0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @property
    def cost(self) -> JudgeCost:
        """What was spent so far."""
        return self._cost

    def admit(self, *, again: bool) -> None:
        """Count one request and wait until the rate allows it.

        Raises:
            BudgetSpent: a budget is spent; nothing was counted.
        """
        with self._lock:
            cost = self._cost
            if self.max_requests is not None and cost.requests >= self.max_requests:
                raise BudgetSpent(f"the budget of {self.max_requests} requests is spent")
            if self.max_tokens is not None and cost.prompt_tokens + cost.completion_tokens >= self.max_tokens:
                raise BudgetSpent(f"the budget of {self.max_tokens} tokens is spent")
            self._cost = replace(cost, requests=cost.requests + 1, retries=cost.retries + again)
            now = self.clock()
            starts = max(now, self._free_at)
            if self.requests_per_minute is not None:
                self._free_at = starts + 60 / self.requests_per_minute
        if starts > now:
            self.sleep(starts - now)

    def used(self, usage: Usage | None, *, asked_bytes: int, answer_tokens: int) -> None:
        """Count an answer's ``usage``; without one, ``asked_bytes`` and ``answer_tokens`` as an upper bound."""
        prompt, completion = (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
        known = prompt is not None and completion is not None
        if prompt is None or completion is None:
            prompt, completion = asked_bytes, answer_tokens
        with self._lock:
            cost = self._cost
            self._cost = replace(
                cost,
                prompt_tokens=cost.prompt_tokens + prompt,
                completion_tokens=cost.completion_tokens + completion,
                estimated=cost.estimated + (not known),
            )
