"""Files and folders that exist whole or not at all: written beside their place, then renamed into it.

A draft is called ``.NAME.PID.draft``. A killed writer leaves one; the next writer of the same name removes it.
"""

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_file(path: Path, data: bytes | str, *, durable: bool = False, draft: Path | None = None) -> None:
    """Write a file in one step, its folder made where it is missing; readers see the old bytes or the new ones.

    Args:
        path: the file.
        data: its whole content; text is written as UTF-8.
        durable: force the bytes to the disk before the rename, and the rename after it, so that a power cut leaves
            the old file or the new one.
        draft: where to write first, on the same disk; by default beside ``path``.

    Raises:
        OSError: the disk refuses; ``path`` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft or _draft(path)
    try:
        with draft.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
        if durable:
            for folder in {path.parent, draft.parent}:
                _sync(folder)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def draft_folder(out: Path) -> Iterator[Path]:
    """A new folder to fill; renamed to ``out`` when the block ends, in place of what was there.

    On any exception the draft is removed and ``out`` is as it was.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = _draft(out)
    for left in (draft, *out.parent.glob(f".{glob.escape(out.name)}.*.draft")):
        if left == draft or not _alive(left.name.split(".")[-2]):
            shutil.rmtree(left, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        if out.is_dir() and not out.is_symlink():
            shutil.rmtree(out)
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.draft")


def _alive(pid: str) -> bool:
    """Whether a process of this machine has that number; one that cannot be asked counts as alive."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OverflowError, PermissionError):
        return True
    return True
