"""Writing files to a place from which others fetch: a folder, an S3 prefix, or a repository of the Hub.

The last file names all others, so readers find a complete set or none. What somebody else fetched is never replaced in
a folder or below a prefix; on the Hub each upload is a commit of its own.
"""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from safegene.checkpoints.sources import hub, s3
from safegene.checkpoints.sources.uri import SourceURI, parse
from safegene.errors import SourceError
from safegene.text import redact
from safegene.workspace import s3_client
from safegene.workspace.atomic import draft_folder
from safegene.workspace.deadline import within

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REMEDY = "publish it to a new folder, prefix or repository: others may have pinned what is there"


def upload(folder: Path, place: str, names: Sequence[str], *, message: str) -> str:
    """Write files of a folder to a place.

    Args:
        folder: where the files are.
        place: a folder, ``file://FOLDER``, ``s3://BUCKET/PREFIX`` or ``hf://ORG/NAME``.
        names: of the files; the last one names the others.
        message: of the Hub's commit.

    Returns:
        The URI to fetch them from; on the Hub with the commit.

    Raises:
        SourceError: the place has another form, holds other content already, or does not answer.
    """
    uri = place if "://" in place else f"file://{Path(place).absolute()}"
    to = parse(uri)
    if to.scheme == "file":
        return _to_folder(folder, Path(to.path), names)
    if to.scheme == "s3":
        return _to_bucket(folder, to, names)
    if to.scheme == "hf" and "/" in to.path and not to.revision:
        return _to_hub(folder, to, names, message)
    raise SourceError(
        f"expected a folder, s3://BUCKET/PREFIX or hf://ORG/NAME to write to, got {redact(place)!r}",
        remedy="a revision is made by the Hub" if to.revision else "",
    )


def _to_folder(folder: Path, to: Path, names: Sequence[str]) -> str:
    if to.is_symlink() or (to.exists() and not to.is_dir()):
        raise SourceError(f"expected a folder to write to, got a file or a link, at {to}")
    if to.is_dir() and any(to.iterdir()):
        last = to / names[-1]
        if not last.is_file() or last.read_bytes() != (folder / names[-1]).read_bytes():
            raise SourceError(f"expected a new or empty folder, got one with files in it, at {to}", remedy=REMEDY)
    with draft_folder(to) as draft:
        for name in names:
            shutil.copyfile(folder / name, draft / name)
    return f"file://{to.absolute()}"


def _to_bucket(folder: Path, to: SourceURI, names: Sequence[str]) -> str:
    # The last file has a digest of every other, and older gateways refuse the checksum trailer of boto3.
    client = s3_client.new_client(s3={"addressing_style": "path"}, request_checksum_calculation="when_required")
    with s3.translate_s3_errors(to.uri):
        _require_absent(client, folder, to, names[-1])
        for name in names:
            key = f"{to.path}/{name}" if to.path else name
            with (folder / name).open("rb") as body:
                put = partial(client.put_object, Bucket=to.bucket, Key=key, Body=body)
                s3_client.ask(client, put, size=(folder / name).stat().st_size)
    return to.uri


def _require_absent(client: "S3Client", folder: Path, to: SourceURI, name: str) -> None:
    """Refuse a prefix that holds another complete set."""
    prefix, data = (f"{to.path}/" if to.path else ""), (folder / name).read_bytes()
    listed = s3_client.pages(client, Bucket=to.bucket, Prefix=f"{prefix}{name}")
    there = any(item["Key"] == f"{prefix}{name}" for page in listed for item in page.get("Contents", []))
    if there and s3.read_small(to, name, len(data) + 1) != data:
        where = redact(to.uri)
        raise SourceError(f"expected a new or empty prefix, got one with another {name}, at {where}", remedy=REMEDY)


def _to_hub(folder: Path, to: SourceURI, names: Sequence[str], message: str) -> str:
    from huggingface_hub import CommitOperationAdd

    api = hub.api()
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(folder / name)) for name in names]
    seconds = hub.ANSWER_SECONDS + sum((folder / name).stat().st_size for name in names) / hub.SLOWEST
    with hub.translate_hub_errors(to.uri):
        within(hub.ANSWER_SECONDS, partial(api.create_repo, to.path, exist_ok=True))
        commit = partial(api.create_commit, to.path, operations=operations, commit_message=message)
        done = within(seconds, commit)
    return f"hf://{to.path}@{done.oid}"
