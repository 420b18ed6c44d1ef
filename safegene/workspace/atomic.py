"""Atomic writes: a file or folder is written as a draft beside its place, then renamed.

A draft is called ``.NAME.PID.draft``. A writer that is killed leaves its draft; the next `draft_folder` of the same
name removes it.
"""

import ctypes
import glob
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)
_HERE, _RENAME_EXCHANGE = -100, 2  # AT_FDCWD and the flag of renameat2(2)


def write_file(path: Path, data: bytes | str, *, durable: bool = False, draft: Path | None = None) -> None:
    """Write a file atomically, and its folder where that is missing; readers see the old content or the new one.

    Args:
        path: the file.
        data: its content; text is written as UTF-8.
        durable: flush the bytes to the disk before the rename and the folders after it, so that a power failure leaves
            the old content or the new one.
        draft: the file to write first, on the same file system; by default beside ``path``.

    Raises:
        OSError: the file cannot be written; ``path`` is as it was.
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


def write_optional(path: Path, data: bytes | str) -> None:
    """`write_file` for what can be computed again: where it cannot be written, the log says so and work goes on."""
    try:
        write_file(path, data)
    except OSError as error:
        log.warning("%s is not kept for a later run: %s", path.name, error.strerror or error)


@contextmanager
def draft_folder(out: Path) -> Iterator[Path]:
    """Give an empty folder to fill; when the block ends, it replaces ``out``.

    On an exception the draft is removed and ``out`` stays as it was. Linux exchanges the two folders in one step, so a
    writer that is killed leaves the old folder or the new one; elsewhere it may leave none for a moment.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = _draft(out)
    for left in (draft, *out.parent.glob(f".{glob.escape(out.name)}.*.draft")):
        if left == draft or not _alive(left.name.split(".")[-2]):
            shutil.rmtree(left, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        old = out.is_dir() and not out.is_symlink()
        if not (old and _exchange(draft, out)):
            if old:
                shutil.rmtree(out)
            draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    paths = os.fsencode(one), os.fsencode(other)
    return rename is not None and rename(_HERE, paths[0], _HERE, paths[1], _RENAME_EXCHANGE) == 0


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.draft")


def _alive(pid: str) -> bool:
    """Whether a process of that number runs on this machine; one that cannot be asked counts as running."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OverflowError, PermissionError):
        return True
    return True
