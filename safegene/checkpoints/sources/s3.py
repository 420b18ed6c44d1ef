"""Checkpoints in S3 buckets: ``s3://BUCKET/PREFIX``. A download that breaks off is resumed.

Credentials, endpoint and the bound on every call: `safegene.workspace.s3_client`. A download has no bound as a whole,
but each block of it has, so a server must send at least `BLOCK` bytes in that time.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safegene.checkpoints.header import parse_header
from safegene.checkpoints.sources.uri import Scheme, SourceURI
from safegene.checkpoints.unsafe import MAX_JSON
from safegene.checkpoints.wanted import INDEX, checkpoint_files, require_complete, weight_map
from safegene.errors import SourceError
from safegene.text import redact, visible
from safegene.workspace import s3_client
from safegene.workspace.digest import digest_json, strict_json
from safegene.workspace.progress import log_progress

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BLOCK = 1 << 18  # bytes
HEAD = 1 << 16  # bytes of a file of weights that are read to check it
ATTEMPTS = 5  # in a row without a new byte
log = logging.getLogger(__name__)


class BucketSource:
    """The checkpoint below a prefix."""

    def __init__(self, place: SourceURI) -> None:
        self.place = place
        self.prefix = f"{place.path}/" if place.path else ""

    def fingerprint(self) -> str:
        """Digest of the checkpoint's names, etags and sizes."""
        names = checkpoint_files(self._objects, lambda: _read_index(self.place))
        if not names:
            where = redact(self.place.uri)
            raise SourceError(f"expected a checkpoint, got {sorted(self._objects)[:5]}, in {where}")
        return digest_json({name: list(self._objects[name]) for name in names})

    def sizes(self) -> Mapping[str, int]:
        """Objects directly below the prefix -> bytes."""
        return {name: size for name, (_, size) in self._objects.items()}

    def copy(self, names: tuple[str, ...], into: Path) -> None:
        """Download each object into ``NAME.part``, and rename it when it is complete."""
        client = new_client()
        for name in names:
            etag, size = self._objects[name]
            if not (into / name).is_file():
                with translate_s3_errors(self.place.uri):
                    self._download(client, name, etag, size, into / name)

    def _download(self, client: "S3Client", name: str, etag: str, size: int, path: Path) -> None:
        part, failures = path.with_name(f"{name}.part"), 0
        part.touch()
        while (have := part.stat().st_size) < size:
            try:
                self._append(client, name, etag, have, part, size)
            except _broken():
                failures = failures + 1 if part.stat().st_size == have else 0
                if failures == ATTEMPTS:
                    raise
        if have != size:
            part.unlink()
            raise SourceError(f"expected {size} bytes of {name}, got {have}, from {redact(self.place.uri)}")
        part.rename(path)

    def _append(self, client: "S3Client", name: str, etag: str, have: int, part: Path, size: int) -> None:
        reply = s3_client.ask(
            client,
            lambda: client.get_object(Bucket=self.place.bucket, Key=self.prefix + name, Range=f"bytes={have}-"),
        )
        if reply.get("ETag", "").strip('"') != etag:
            raise SourceError(
                f"expected {name} with etag {etag}, got {reply.get('ETag')}, from {redact(self.place.uri)}",
                remedy="it changed during the download: run again when the upload is complete",
            )
        with part.open("ab") as file:
            while block := s3_client.ask(client, lambda: reply["Body"].read(BLOCK)):
                file.write(block)
                log_progress(log, f"{visible(name)}, MB", file.tell() // 10**6, size // 10**6)

    @cached_property
    def _objects(self) -> dict[str, tuple[str, int]]:
        with translate_s3_errors(self.place.uri):
            objects = {
                item["Key"].removeprefix(self.prefix): (item["ETag"].strip('"'), item["Size"])
                for page in s3_client.pages(new_client(), Bucket=self.place.bucket, Prefix=self.prefix, Delimiter="/")
                for item in page.get("Contents", [])
            }
        if not objects:
            raise SourceError(f"expected a checkpoint, got no objects, in {redact(self.place.uri)}")
        return objects


def folders_of(place: SourceURI) -> list[str]:
    """The names of the folders directly below a prefix, sorted."""
    prefix = f"{place.path}/" if place.path else ""
    with translate_s3_errors(place.uri):
        pages = s3_client.pages(new_client(), Bucket=place.bucket, Prefix=prefix, Delimiter="/")
        prefixes = [item["Prefix"] for page in pages for item in page.get("CommonPrefixes", [])]
    return sorted(name.removeprefix(prefix).strip("/") for name in prefixes)


def read_small(place: SourceURI, name: str, most: int) -> bytes:
    """The first ``most`` bytes of an object below a prefix."""
    key = f"{place.path}/{name}" if place.path else name
    return read_object(place.uri, place.bucket, key, most, Range=f"bytes=0-{most - 1}")[:most]


def read_object(uri: str, bucket: str, key: str, most: int, **request: str) -> bytes:
    """An object's content, at most ``most`` bytes and one.

    Raises:
        SourceError: the server does not answer, or announces more.
    """
    client = new_client()
    with translate_s3_errors(uri):
        reply = s3_client.ask(client, lambda: client.get_object(Bucket=bucket, Key=key, **request))  # type: ignore[arg-type]
        size = reply.get("ContentLength", most)
        if size > most:
            raise SourceError(f"expected at most {most} bytes, got {size}, from {redact(uri)}")
        return s3_client.ask(client, lambda: reply["Body"].read(most + 1), size=size)


def new_client() -> "S3Client":
    """A client with path-style addresses, which every S3 server supports."""
    return s3_client.new_client(s3={"addressing_style": "path"})


@contextmanager
def translate_s3_errors(uri: str) -> Iterator[None]:
    """Raise `SourceError` without secrets in place of boto's exceptions."""
    from botocore.exceptions import NoCredentialsError

    try:
        yield
    except NoCredentialsError:
        remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role"
        raise SourceError(f"expected credentials for {redact(uri)}, got none", remedy=remedy) from None
    except s3_client.errors() as error:
        raise SourceError(
            f"expected an answer for {redact(uri)}, got {s3_client.reason(error)}",
            remedy="check bucket, prefix, credentials and AWS_ENDPOINT_URL, then run again: the download resumes",
        ) from None


def _broken() -> tuple[type[Exception], ...]:
    """The exceptions of a connection that breaks while a body is read."""
    from botocore.exceptions import HTTPClientError, IncompleteReadError
    from urllib3.exceptions import HTTPError

    return (HTTPClientError, IncompleteReadError, HTTPError, OSError)


def parse(uri: str, rest: str) -> SourceURI | None:
    """Parse ``s3://BUCKET/PREFIX``."""
    match = re.fullmatch(r"([a-z0-9][a-z0-9.-]{1,62})(?:/([^?#\s]*))?", rest)
    return SourceURI(uri, "s3", (match[2] or "").strip("/"), bucket=match[1]) if match else None


def children(place: SourceURI) -> dict[str, Callable[[], object]]:
    """The URI of every folder directly below -> its check."""
    base = f"s3://{place.bucket}/{place.path}".rstrip("/")
    places = [
        SourceURI(f"{base}/{name}", "s3", f"{place.path}/{name}".strip("/"), place.bucket) for name in folders_of(place)
    ]
    return {child.uri: partial(_check, child) for child in places if not re.search(r"[\s?#]", child.uri)}


def _check(place: SourceURI) -> None:
    """Raise where a file of the checkpoint is missing, or a file of weights has not the bytes that its header says."""
    sizes, where = BucketSource(place).sizes(), redact(place.uri)
    shards = weight_map(_read_index(place), f"{where}/{INDEX}") if INDEX in sizes else {}
    require_complete(sizes, shards, place.uri)
    for name in checkpoint_files(sizes, lambda: _read_index(place)):
        if name.endswith(".safetensors"):
            parse_header(partial(_first_bytes, place, name, {}), sizes[name], f"{where}/{visible(name)}")


def _first_bytes(place: SourceURI, name: str, read: dict[str, bytes], count: int) -> bytes:
    """The first ``count`` bytes of an object; most headers are read by one request, which ``read`` keeps."""
    if len(read.get(name, b"")) < count:
        read[name] = read_small(place, name, max(count, HEAD))
    return read[name][:count]


def _read_index(place: SourceURI) -> Any:
    return strict_json(read_small(place, INDEX, MAX_JSON), where=f"{redact(place.uri)}/{INDEX}")


SCHEME = Scheme("s3://BUCKET/PREFIX", parse, BucketSource, children)
