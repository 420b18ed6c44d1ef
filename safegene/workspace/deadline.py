"""A bound on the whole of a call that waits for the network.

The timeouts of HTTP libraries bound the wait for the next bytes, so a server that sends one byte at a time holds a
caller for ever, in the headers as in the body, and a name server holds it without any timeout. `within` bounds address
lookup, connection, request, headers, body and the library's own retries together.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class DeadlinePassed(Exception):  # noqa: N818 (callers turn it into an error of theirs)
    """The call has not ended within its time."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """The value of ``call()``, which runs in a thread of its own.

    A call that is late is abandoned: what it still returns or raises is ignored, and it does not keep the process from
    ending. So a write that is late may still arrive; it must be one that may be repeated, or a conditional one.

    Args:
        seconds: the longest wait.
        call: takes no arguments.

    Raises:
        DeadlinePassed: the call has not ended in time; the message says the seconds.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True, name="safegene-within").start()
    try:
        return outcome.result(seconds)
    except TimeoutError:
        if outcome.done():  # the call's own error
            raise
        raise DeadlinePassed(f"no complete answer within {seconds:g} s") from None
