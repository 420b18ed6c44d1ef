"""Object stores behind one small interface: a local directory and S3, both with compare-and-swap.

A store maps keys (``records/ab.json``) to bytes. Every object has an *etag*, which changes with its content. Writers
never overwrite blindly: `put_if_absent` creates, `put_if_match` replaces exactly the version that was read. A lost
reply is settled by reading back: a writer's bytes are its own (they name a record with a nonce), so finding them means
that it won. A store that ignores conditions is found out by `self_test` and refused.
"""

import fcntl
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit
from uuid import uuid4

from safegene.errors import ParamsError, PreconditionFailed, StoreError
from safegene.workspace.atomic import write_file
from safegene.workspace.digest import digest_bytes

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

WRITERS = 16
CONFLICTS = 5
DRAFT = ".draft"
_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


class ObjectMissing(StoreError):
    """There is no object under that key."""


class Store(Protocol):
    """What the ledger needs of an object store. ``uri`` names it in messages and records."""

    @property
    def uri(self) -> str:
        """Where the store is, as a person would write it."""
        ...

    def get(self, key: str) -> tuple[bytes, str]:
        """Content and etag; raises `ObjectMissing`."""
        ...

    def put_if_absent(self, key: str, data: bytes) -> str:
        """Create the object and give its etag; raises `PreconditionFailed` if other content is there."""
        ...

    def put_if_match(self, key: str, data: bytes, etag: str) -> str:
        """Replace the version ``etag`` and give the new etag; raises `PreconditionFailed` if it is gone."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """Keys that start with ``prefix``, sorted."""
        ...

    def discard(self, key: str) -> None:
        """Remove what a self-test left; nothing else is ever removed."""
        ...


def check_key(key: str) -> str:
    """The key, if it is relative, of plain characters, and no part of it begins with a dot.

    Raises:
        StoreError: it is not.
    """
    if not all(_PART.fullmatch(part) for part in key.split("/")):
        raise StoreError(f"expected a key of letters, digits, '.', '_', '-' and '/' inside the store, got {key!r}")
    return key


@dataclass(frozen=True)
class LocalStore:
    """A directory. One ``fcntl`` lock orders the writers; a rename after ``fsync`` makes each write whole or absent."""

    root: Path

    @property
    def uri(self) -> str:
        """The directory."""
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
        start, found = self.root / prefix.rpartition("/")[0], list[str]()
        for folder, folders, files in os.walk(start):  # which passes over what a writer removes meanwhile
            links = [name for name in folders if Path(folder, name).is_symlink()]
            found += [Path(folder, name).relative_to(self.root).as_posix() for name in (*files, *links)]
        return iter(sorted(key for key in found if key.startswith(prefix) and key != DRAFT))

    def discard(self, key: str) -> None:
        """See `Store`."""
        path = self.root / check_key(key)
        with self._lock():
            path.unlink(missing_ok=True)
            if path.parent not in (self.root, *self.root.parents) and not any(path.parent.iterdir()):
                path.parent.rmdir()

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
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # of the folder itself: no file that Git would see
            yield
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class S3Store:
    """A prefix of an S3 bucket, through boto3. Credentials and endpoint come from the standard chain (``AWS_*``).

    Objects are written whole (at most 5 GiB). Ceph RGW wants the ETag bare in ``If-Match`` where boto3 gives it quoted:
    a 412 is tried once more without the quotes.
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
        import boto3
        from botocore.config import Config

        config = Config(
            retries={"max_attempts": 4, "mode": "standard"},
            max_pool_connections=2 * WRITERS,
            connect_timeout=10,
            read_timeout=60,
            # Checksums are ours (sha256 of every object); older gateways refuse the trailer that boto3 adds by default.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return boto3.Session().client("s3", endpoint_url=self.endpoint, config=config)

    def get(self, key: str) -> tuple[bytes, str]:
        """See `Store`."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            reply = self._client.get_object(Bucket=self.bucket, Key=self._full(key))
            return reply["Body"].read(), reply["ETag"]
        except ClientError as error:
            if _status(error) == 404 and error.response["Error"].get("Code") != "NoSuchBucket":
                raise ObjectMissing(f"expected the object {key}, got none, in {self.uri}") from None
            raise self._failed("read", key, error) from error
        except BotoCoreError as error:
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
        from botocore.exceptions import BotoCoreError, ClientError

        base = f"{self.prefix}/" if self.prefix else ""
        try:
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=base + prefix)
            keys = [item["Key"][len(base) :] for page in pages for item in page.get("Contents", ())]
        except (ClientError, BotoCoreError) as error:
            raise self._failed("list", prefix, error) from error
        return iter(sorted(keys))

    def discard(self, key: str) -> None:
        """See `Store`."""
        from botocore.exceptions import BotoCoreError, ClientError

        with suppress(ClientError, BotoCoreError):  # a leftover harms nobody, and must not hide what the test found
            self._client.delete_object(Bucket=self.bucket, Key=self._full(key))

    def _full(self, key: str) -> str:
        return f"{self.prefix}/{check_key(key)}" if self.prefix else check_key(key)

    def _put(self, key: str, data: bytes, **condition: str) -> str:
        from botocore.exceptions import ClientError

        for attempt in range(CONFLICTS + 1):
            try:
                reply = self._client.put_object(Bucket=self.bucket, Key=self._full(key), Body=data, **condition)  # type: ignore[arg-type]
                return reply["ETag"]
            except ClientError as error:
                status = _status(error)
                if status == 409 and attempt < CONFLICTS:  # S3: two conditional writes met, neither lost yet; again
                    time.sleep(0.05 * 2**attempt)
                elif status in (409, 412) or (status == 404 and "IfMatch" in condition):
                    raise PreconditionFailed(f"expected {condition} to hold for {key} in {self.uri}, not so") from None
                else:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _settle(self, key: str, data: bytes, put: Callable[[], str]) -> str:
        """Run ``put``; where it lost or its reply was lost, our own bytes under the key mean that it won."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return put()
        except (PreconditionFailed, ClientError, BotoCoreError) as error:
            with suppress(StoreError):
                found, etag = self.get(key)
                if found == data:
                    return etag
            if isinstance(error, PreconditionFailed):
                raise
            raise self._failed("write", key, error) from error

    def _failed(self, verb: str, key: str, error: Exception) -> StoreError:
        said = " ".join(str(error).split())
        return StoreError(
            f"expected to {verb} {key} in {self.uri}, got {said}",
            remedy="check AWS_ENDPOINT_URL, the bucket's name and the credentials of the standard AWS chain",
        )


def _status(error: Exception) -> int:
    response = getattr(error, "response", {})
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


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
    """Prove that the store honours conditions: 16 writers at once, one winner, for create and for replace.

    Raises:
        StoreError: names the store and says what it did; promotions on it are refused.
    """
    key = f"selftest/{uuid4().hex}"
    try:
        _race(store, key, "create one object", lambda data: store.put_if_absent(key, data))
        _, etag = store.get(key)
        _race(store, key, "replace one version of an object", lambda data: store.put_if_match(key, data, etag))
    finally:
        store.discard(key)


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
        mine = uuid4().hex.encode()
        start.wait()
        try:
            write(mine)
        except PreconditionFailed:
            return None
        return mine

    with ThreadPoolExecutor(WRITERS) as pool:
        winners = [won for won in pool.map(writer, range(WRITERS)) if won is not None]
    if len(winners) != 1 or store.get(key)[0] != winners[0]:
        raise StoreError(
            f"expected one winner of {WRITERS} writers that {what} at once, got {len(winners)}, in {store.uri}",
            remedy="this store ignores conditional writes: keep the ledger in a folder or on an S3 that honours them",
        )
