"""Where a path in ``params.yaml`` may lead: never into what Git, DVC or the pipeline itself writes.

A path is refused where it is read, before anything is written: a ledger in ``data`` would be removed by DVC, one in
``.git`` would break the repository, and ``~`` is no home folder outside of a shell.
"""

import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

RESERVED = frozenset({"data", "reports", "params.yaml", "dvc.yaml", "dvc.lock", "ledger.seen"})
"""Files and folders of a workspace that commands write, besides those whose names begin with a dot."""
_BUCKET = re.compile(r"s3://[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*/?")


def check_store(value: str) -> str:
    """The place of a ledger, if it has a valid form: ``s3://BUCKET[/PREFIX]``, or a folder as for `check_path`.

    Raises:
        ValueError: it has not.
    """
    if value.startswith("s3:"):
        if not _BUCKET.fullmatch(value):
            raise ValueError("expected s3://BUCKET/PREFIX of letters, digits, '.', '_' and '-', without credentials")
        return value
    if "://" in value:
        parts = urlsplit(value)
        if parts.scheme != "file" or parts.netloc:
            raise ValueError("expected s3://BUCKET/PREFIX, file:///FOLDER or a folder of the workspace")
    check_path(local_path(value))
    return value


def check_path(path: Path) -> Path:
    """The path, if it is absolute, or leads to a place in the workspace that nothing else writes.

    Raises:
        ValueError: it is empty or not printable, has a part that begins with ``.`` or ``~``, or begins with one of
            `RESERVED`.
    """
    text = str(path)
    parts = [part for part in path.parts if part != path.anchor]
    if not parts:
        raise ValueError("expected a path, got none (the workspace itself, or an empty text)")
    if not text.isprintable() or any(part != part.strip() for part in parts):
        raise ValueError("expected a path of printable characters without blanks at an end of a name")
    if hidden := [part for part in parts if part == ".." or part[0] == "~" or (part[0] == "." and not path.anchor)]:
        raise ValueError(f"expected a path without parts such as {hidden[0]!r}: name the folder in full")
    if not path.anchor and parts[0].casefold() in RESERVED:
        raise ValueError(f"expected a place that nothing else writes; commands of safegene write {parts[0]}")
    return path


def local_path(value: str) -> Path:
    """The path that a folder or a ``file://`` URI names."""
    return Path(unquote(urlsplit(value).path)) if value.startswith("file://") else Path(value)


def written_by_others(path: Path, root: Path, others: Collection[Path]) -> str:
    """Why nothing may be kept at ``path`` of the workspace ``root``, links followed; empty where it may.

    Args:
        path: absolute, or relative to ``root``.
        root: the workspace.
        others: folders outside of the workspace that safegene writes.
    """
    place, root = (root / path).resolve(), root.resolve()
    if root.is_relative_to(place):
        return f"{place} holds the workspace"
    if place.is_relative_to(root):
        inside = PurePosixPath(place.relative_to(root).as_posix())
        try:
            check_path(Path(inside))
        except ValueError:
            return f"{place} is written by Git, DVC or safegene"
    for other in others:
        if place.is_relative_to(other.resolve()) or other.resolve().is_relative_to(place):
            return f"{place} is or holds {other}, which safegene writes"
    return ""
