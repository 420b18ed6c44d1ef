"""One file from this machine, a data set of the Hub, or an S3 bucket, with its provenance.

``PATH`` or ``file://PATH``, ``hf://datasets/ORG/NAME[@REVISION]/FILE``, ``s3://BUCKET/KEY``. At most 256 MiB.
"""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safegene.checkpoints.sources import hub, s3
from safegene.checkpoints.sources.uri import parse
from safegene.errors import SourceError
from safegene.text import redact, redact_text
from safegene.workspace.deadline import within
from safegene.workspace.digest import PREFIX, digest_bytes

LIMIT = 256 << 20
_DATASET = re.compile(r"hf://datasets/([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w.-]+))?/([\w./ -]+)")


@dataclass(frozen=True)
class PlainFile:
    """A file and its provenance.

    Attributes:
        name: of the file, without folders.
        data: its bytes.
        uri: its source; "" for a file on this machine, as its path means nothing elsewhere.
        revision: the Hub's commit, else "".
    """

    name: str
    data: bytes
    uri: str = ""
    revision: str = ""


def read_file(where: str, names: Sequence[str] = ()) -> PlainFile:
    """Read a file.

    Args:
        where: a path or URI.
        names: the names to look for where ``where`` is a local folder; exactly one of them must be there.

    Raises:
        SourceError: ``where`` has another form or holds a secret; the file is missing or larger than 256 MiB; the
            source does not answer, or sends other bytes than the Hub announced (it announces those of large files).
    """
    if redact_text(where) != where:
        raise SourceError(f"expected a source without secrets, got one in {redact(where)}")
    if where.startswith("hf://"):
        return _hub_file(where)
    if where.startswith("s3://"):
        return _s3_file(where)
    if "://" in where and not where.startswith("file://"):
        forms = "PATH, file://PATH, hf://datasets/ORG/NAME[@REVISION]/FILE or s3://BUCKET/KEY"
        raise SourceError(f"expected a source of the form {forms}, got {redact(where)!r}")
    try:
        return _local(Path(parse(where).path if "://" in where else where), names)
    except OSError as error:
        raise SourceError(f"expected a file, got {error.strerror}, at {where[:200]}") from None


def _local(path: Path, names: Sequence[str]) -> PlainFile:
    if path.is_dir():
        present = [name for name in names if (path / name).is_file()]
        if len(present) != 1:
            wanted = " or ".join(names) or "a file, not a folder"
            raise SourceError(
                f"expected one of {wanted} in {path}, got {', '.join(present) or 'none'}", remedy="name the file itself"
            )
        path = path / present[0]
    if not path.is_file():
        raise SourceError(f"expected a file, got none at {path}")
    _check_size(path.stat().st_size, str(path))
    return PlainFile(path.name, path.read_bytes())


def _hub_file(uri: str) -> PlainFile:
    match = _DATASET.fullmatch(uri)
    if not match or ".." in uri:
        raise SourceError(f"expected hf://datasets/ORG/NAME[@REVISION]/FILE, got {redact(uri)!r}")
    from huggingface_hub import hf_hub_download

    repo, revision, name = match[1], match[2] or None, match[3]
    with hub.translate_hub_errors(uri), tempfile.TemporaryDirectory() as folder:
        ask = partial(hub.api().dataset_info, repo, revision=revision, files_metadata=True)
        info = within(hub.ANSWER_SECONDS, ask)
        known = {file.rfilename: file for file in info.siblings or []}
        if name not in known:
            raise SourceError(f"expected {name} in {redact(uri)}, got {', '.join(sorted(known)[:8]) or 'no files'}")
        _check_size(known[name].size or 0, redact(uri))
        download = partial(
            hf_hub_download,
            repo,
            name,
            repo_type="dataset",
            revision=info.sha,
            local_dir=folder,
            endpoint=hub.endpoint(),
            etag_timeout=30,
        )
        path = within(hub.ANSWER_SECONDS + (known[name].size or 0) / hub.SLOWEST, download)
        data = Path(path).read_bytes()
    if (lfs := known[name].lfs) and (got := digest_bytes(data)) != PREFIX + lfs["sha256"]:
        raise SourceError(
            f"expected {name} with {PREFIX}{lfs['sha256']}, got {got}, from {redact(uri)}",
            remedy="the download was damaged: run again",
        )
    return PlainFile(Path(name).name, data, uri, f"commit:{info.sha}")


def _s3_file(uri: str) -> PlainFile:
    place = parse(uri)
    if not place.path:
        raise SourceError(f"expected s3://BUCKET/KEY, got {redact(uri)!r}")
    data = s3.read_object(uri, place.bucket, place.path, LIMIT)
    return PlainFile(place.path.rpartition("/")[2], data, uri)


def _check_size(size: int, where: str) -> None:
    if size > LIMIT:
        raise SourceError(f"expected at most {LIMIT} bytes, got {size}, from {where}")
