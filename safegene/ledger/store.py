"""Object stores behind one small interface: a local folder and S3, both with conditional writes.

A store maps keys (``records/ab.json``) to bytes. Every object has an *etag*, which changes with its content. There is
no unconditional write: `put_if_absent` creates an object, `put_if_match` replaces exactly the version that was read.
After a lost reply the writer reads the object: no two writers write the same bytes (they name a record with a nonce),
so its own bytes mean that its write succeeded. `self_test` finds a store that ignores conditions; it is refused.
"""

import fcntl
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

from safegene.errors import ParamsError, PreconditionFailed, StoreError
from safegene.workspace import s3_client
from safegene.workspace.atomic import write_file
from safegene.workspace.digest import digest_bytes

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client

WRITERS = 16
CONFLICTS = 5
DRAFT = ".draft"
T = TypeVar("T")
_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


class ObjectMissing(StoreError):
    """There is no object under that key."""


class Store(Protocol):
    """What the ledger needs of an object store."""

    @property
    def uri(self) -> str:
        """The place of the store, for messages and records."""
        ...

    def get(self, key: str) -> tuple[bytes, str]:
        """Content and etag of an object; raises `ObjectMissing`."""
        ...

    def put_if_absent(self, key: str, data: bytes) -> str:
        """Create an object and return its etag; raises `PreconditionFailed` if there is one with other content."""
        ...

    def put_if_match(self, key: str, data: bytes, etag: str) -> str:
        """Replace the version ``etag`` and return the new etag; raises `PreconditionFailed` if it is not there."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """The keys that start with ``prefix``, sorted."""
        ...

    def discard(self, key: str) -> None:
        """Remove an object of `self_test`; no other object is ever removed."""
        ...


def check_key(key: str) -> str:
    """Return the key if it is valid: relative, of plain characters, with no part that begins with a dot.

    Raises:
        StoreError: it is not valid.
    """
    if not all(_PART.fullmatch(part) for part in key.split("/")):
        raise StoreError(f"expected a key of letters, digits, '.', '_', '-' and '/' inside the store, got {key!r}")
    return key


@dataclass(frozen=True)
class LocalStore:
    """A folder. A file lock orders the writers; each write is atomic and durable (`write_file`)."""

    root: Path

    @property
    def uri(self) -> str:
        """The folder."""
        return str(self.root)

    def get(self, key: str) -> tuple[bytes, str]:
        """See `Store`."""
        try:
            data = (self.root / check_key(key)).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise ObjectMissing(f"expected the object {key}, got none, in {self.root}") from None
        except OSError as error:
            raise StoreError(f"expected to read {key} in {self.root}, got {error}") from error
        return data, digest_bytes(data)

    def put_if_absent(self, key: str, data: bytes) -> str:
        """See `Store`."""
        return self._put(key, data, expected=None)

    def put_if_match(self, key: str, data: bytes, etag: str) -> str:
        """See `Store`."""
        return self._put(key, data, expected=etag)

    def list(self, prefix: str) -> Iterator[str]:
        """See `Store`."""
        start, keys = self.root / prefix.rpartition("/")[0], list[str]()
        for folder, folders, files in os.walk(start):  # os.walk ignores files that a writer removes meanwhile
            links = [name for name in folders if Path(folder, name).is_symlink()]
            keys += [Path(folder, name).relative_to(self.root).as_posix() for name in (*files, *links)]
        return iter(sorted(key for key in keys if key.startswith(prefix) and key != DRAFT))

    def discard(self, key: str) -> None:
        """See `Store`."""
        path = self.root / check_key(key)
        with suppress(OSError), self._lock():  # this error must not hide the result of the self-test
            path.unlink(missing_ok=True)
            if path.parent not in (self.root, *self.root.parents):
                path.parent.rmdir()  # fails where another self-test runs

    def _put(self, key: str, data: bytes, *, expected: str | None) -> str:
        path = self.root / check_key(key)
        etag = digest_bytes(data)
        try:
            with self._lock():
                present = digest_bytes(path.read_bytes()) if path.exists() else None
                if present == etag and expected is None:
                    return etag
                if present != expected:
                    raise PreconditionFailed(f"expected {expected or 'no object'} under {key}, got {present or 'none'}")
                # The lock allows one name for all drafts: the next write replaces what a killed writer left.
                write_file(path, data, durable=True, draft=self.root / DRAFT)
        except OSError as error:
            raise StoreError(f"expected to write {key} in {self.root}, got {error}") from error
        return etag

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # a lock on the folder itself adds no file that Git would see
            yield
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class S3Store:
    """A prefix of an S3 bucket, through boto3. Credentials and endpoint come from the standard chain (``AWS_*``).

    An object is written by one request (at most 5 GiB). boto3 returns an ETag with quotes; Ceph RGW expects none in
    ``If-Match``, so a write that failed with 412 is repeated without them.
    `safegene.workspace.s3_client` bounds every call.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None

    @property
    def uri(self) -> str:
        """``s3://bucket/prefix``."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @cached_property
    def _client(self) -> "S3Client":
        return s3_client.new_client(
            endpoint=self.endpoint,
            max_pool_connections=2 * WRITERS,
            # The ledger has a sha256 of every object, and older gateways refuse the checksum trailer of boto3.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )

    def get(self, key: str) -> tuple[bytes, str]:
        """See `Store`."""

        def open_object() -> tuple["StreamingBody", int, str]:
            reply = self._client.get_object(Bucket=self.bucket, Key=self._full(key))
            try:
                return reply["Body"], reply["ContentLength"], reply["ETag"]
            except KeyError:  # not an answer of S3
                reply["Body"].close()
                raise

        try:
            body, size, etag = self._ask(open_object)
            return self._ask(lambda: _read(body), size=size), etag
        except s3_client.errors() as error:
            if s3_client.status(error) == 404 and s3_client.code(error) != "NoSuchBucket":
                raise ObjectMissing(f"expected the object {key}, got none, in {self.uri}") from None
            raise self._failed("read", key, error) from error

    def put_if_absent(self, key: str, data: bytes) -> str:
        """See `Store`."""
        return self._settle(key, data, lambda: self._put(key, data, IfNoneMatch="*"))

    def put_if_match(self, key: str, data: bytes, etag: str) -> str:
        """See `Store`."""

        def put() -> str:
            try:
                return self._put(key, data, IfMatch=etag)
            except PreconditionFailed:
                if etag == (bare := etag.strip('"')):
                    raise
                return self._put(key, data, IfMatch=bare)

        return self._settle(key, data, put)

    def list(self, prefix: str) -> Iterator[str]:
        """See `Store`."""
        base = f"{self.prefix}/" if self.prefix else ""
        try:
            pages = s3_client.pages(self._client, Bucket=self.bucket, Prefix=base + prefix)
            return iter(sorted(item["Key"][len(base) :] for page in pages for item in page.get("Contents", ())))
        except s3_client.errors() as error:
            raise self._failed("list", prefix, error) from error

    def discard(self, key: str) -> None:
        """See `Store`."""
        with suppress(*s3_client.errors()):  # this error must not hide the result of the self-test
            self._ask(lambda: self._client.delete_object(Bucket=self.bucket, Key=self._full(key)))

    def _ask(self, call: Callable[[], T], *, size: int = 0) -> T:
        return s3_client.ask(self._client, call, size=size)

    def _full(self, key: str) -> str:
        return f"{self.prefix}/{check_key(key)}" if self.prefix else check_key(key)

    def _put(self, key: str, data: bytes, **condition: str) -> str:
        from botocore.exceptions import ClientError

        def put() -> str:
            reply = self._client.put_object(Bucket=self.bucket, Key=self._full(key), Body=data, **condition)  # type: ignore[arg-type]
            return reply["ETag"]

        for attempt in range(CONFLICTS + 1):
            try:
                return self._ask(put, size=len(data))
            except ClientError as error:
                status = s3_client.status(error)
                if status == 409 and attempt < CONFLICTS:  # two conditional writes at once: S3 asks for a retry
                    time.sleep(0.05 * 2**attempt)
                elif status in (409, 412) or (status == 404 and "IfMatch" in condition):
                    raise PreconditionFailed(f"expected {condition} for {key}, got a refusal, in {self.uri}") from None
                else:
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _settle(self, key: str, data: bytes, put: Callable[[], str]) -> str:
        """Run ``put``; where it fails although the object has this writer's bytes, only the reply was lost."""
        try:
            return put()
        except s3_client.errors(PreconditionFailed) as error:
            with suppress(StoreError):
                content, etag = self.get(key)
                if content == data:
                    return etag
            if isinstance(error, PreconditionFailed):
                raise
            raise self._failed("write", key, error) from error

    def _failed(self, verb: str, key: str, error: Exception) -> StoreError:
        return StoreError(
            f"expected to {verb} {key} in {self.uri}, got {s3_client.reason(error)}",
            remedy="check AWS_ENDPOINT_URL, the bucket's name and the credentials of the standard AWS chain",
        )


def open_store(uri: str, *, base: Path | None = None) -> Store:
    """A store by URI: ``s3://bucket/prefix``, ``file:///folder``, or a folder (relative to ``base``).

    Raises:
        ParamsError: another scheme, or no bucket.
    """
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        if not parts.netloc or "@" in parts.netloc:
            raise ParamsError("expected s3://bucket/prefix without credentials, got another form of s3 URI")
        prefix = parts.path.strip("/")
        return S3Store(parts.netloc, check_key(prefix) if prefix else "")
    if parts.scheme not in ("", "file"):
        raise ParamsError(f"expected a store at s3://bucket/prefix or in a folder, got the scheme {parts.scheme!r}")
    return LocalStore((base or Path.cwd()) / (parts.path if parts.scheme else uri))


def self_test(store: Store) -> None:
    """Check that the store honours conditions: of 16 writers at once, exactly one may create or replace an object.

    Raises:
        StoreError: it does not.
    """
    key = f"selftest/{uuid4().hex}"
    try:
        _race(store, key, "create one object", lambda data: store.put_if_absent(key, data))
        _, etag = store.get(key)
        _race(store, key, "replace one version of an object", lambda data: store.put_if_match(key, data, etag))
    finally:
        store.discard(key)


def _read(body: "StreamingBody") -> bytes:
    with closing(body):
        return body.read()


_proven: set[str] = set()


def require_conditions(store: Store) -> None:
    """Run `self_test`, once per process and store.

    Raises:
        StoreError: the store ignores conditions, so nothing may be promoted on it.
    """
    if store.uri not in _proven:
        self_test(store)
        _proven.add(store.uri)


def _race(store: Store, key: str, what: str, write: Callable[[bytes], str]) -> None:
    start = threading.Barrier(WRITERS)

    def writer(_: int) -> bytes | None:
        data = uuid4().hex.encode()
        start.wait()
        try:
            write(data)
        except PreconditionFailed:
            return None
        return data

    with ThreadPoolExecutor(WRITERS) as pool:
        winners = [data for data in pool.map(writer, range(WRITERS)) if data is not None]
    if len(winners) != 1 or store.get(key)[0] != winners[0]:
        raise StoreError(
            f"expected one of {WRITERS} writers that {what} at once to succeed, got {len(winners)}, in {store.uri}",
            remedy="this store ignores conditional writes: keep the ledger in a folder or on an S3 that honours them",
        )
