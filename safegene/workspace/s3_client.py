"""The S3 client of ledgers and checkpoint sources, with a bound on every call.

Credentials and endpoint come from boto3's standard chain (``AWS_*``, ``~/.aws``, ``AWS_ENDPOINT_URL``). Every call ends
within `ANSWER_SECONDS`, its retries included, and a second more per `SLOWEST` bytes of content. After a call that did
not, all calls to that server fail at once for `SILENT_SECONDS`: a command that has many objects to read, or an error to
record, does not wait for each of them.
"""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from safegene.text import redact_text
from safegene.workspace.deadline import DeadlinePassed, within

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ANSWER_SECONDS = 20.0
SLOWEST = 1 << 20  # bytes a second
SILENT_SECONDS = 60.0
T = TypeVar("T")
_silent: dict[str, float] = {}  # server -> until when its calls fail at once


class OddAnswer(Exception):  # noqa: N818 (callers turn it into an error of theirs)
    """The answer is not one of an S3 server."""


def new_client(*, endpoint: str | None = None, **settings: Any) -> "S3Client":
    """A client whose waits are bounded; ``settings`` are botocore's."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"max_attempts": 3, "mode": "standard"},
        connect_timeout=ANSWER_SECONDS / 4,
        read_timeout=ANSWER_SECONDS,
        **settings,
    )
    return boto3.Session().client("s3", endpoint_url=endpoint, config=config)


def ask(client: "S3Client", call: Callable[[], T], *, size: int = 0) -> T:
    """The value of ``call()``, which uses ``client`` and sends or reads ``size`` bytes.

    Raises:
        DeadlinePassed: it did not end in time, or an earlier call to this server did not and was not long ago.
        OddAnswer: the answer confuses boto3, which recurses without end on some redirects, for example.
        BotoCoreError, ClientError, HTTPError, OSError: other failures.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    server = client.meta.endpoint_url
    if time.monotonic() < _silent.get(server, 0.0):
        raise DeadlinePassed("no answer to an earlier request")
    try:
        return within(ANSWER_SECONDS + size / SLOWEST, call)
    except DeadlinePassed:
        _silent[server] = time.monotonic() + SILENT_SECONDS
        raise
    except (BotoCoreError, ClientError, HTTPError, OSError):
        raise
    except Exception as error:
        raise OddAnswer(f"an answer that is not one of an S3 server ({type(error).__name__}: {error})") from error


def pages(client: "S3Client", **request: str) -> Iterator[Any]:
    """The pages of a list of objects; each is one call. Errors as of `ask`.

    A page must name its bucket: boto3 reads any other XML, such as a web page, as a list without objects.
    """
    listed = iter(client.get_paginator("list_objects_v2").paginate(**request))  # type: ignore[arg-type]
    while (page := ask(client, lambda: next(listed, None))) is not None:
        if page.get("Name") != request["Bucket"]:
            raise OddAnswer("a list that does not name its bucket: not one of an S3 server")
        yield page


def errors(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What `ask` raises where the server or the network misbehaves, and ``more``."""
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    return (BotoCoreError, ClientError, HTTPError, OSError, OddAnswer, DeadlinePassed, *more)


def reason(error: Exception) -> str:
    """What went wrong, on one line and without secrets."""
    return redact_text(" ".join(str(error).split()))[:300]


def status(error: Exception) -> int:
    """The HTTP status of an error of boto3; 0 where there is none."""
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code(error: Exception) -> str:
    """The S3 error code (``NoSuchKey``); "" where there is none."""
    return str(_response(error).get("Error", {}).get("Code", ""))


def _response(error: Exception) -> dict[str, Any]:
    from botocore.exceptions import ClientError

    return dict(error.response) if isinstance(error, ClientError) else {}
