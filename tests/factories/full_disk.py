"""A disk that becomes full at a chosen write below a folder: every later write there fails too."""

import errno
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class FullDisk:
    """Counts the writes below ``folder``; those from number ``room`` on (from 0) fail with ENOSPC."""

    def __init__(self, folder: Path, room: int) -> None:
        self.folder, self.room, self.writes = folder.resolve(), room, 0

    def use(self, path: Any) -> None:
        if Path(os.fsdecode(path)).absolute().is_relative_to(self.folder):
            self.writes += 1
            if self.writes > self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


class HalfWritten:
    """A file that takes half of the first bytes written to it, and no more."""

    def __init__(self, file: Any, error: OSError) -> None:
        self._file, self._error = file, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "HalfWritten":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: Any) -> int:
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        raise self._error


@contextmanager
def full_disk(folder: Path, *, room: int = 1 << 30) -> Iterator[FullDisk]:
    """Writing a file, making a folder and copying fail below ``folder`` once ``room`` of them were done.

    The first file that fails holds half of what was written to it; later ones cannot be opened to be written.
    """
    disk = FullDisk(folder, room)
    opened, made, copied = io.open, os.mkdir, shutil.copyfile

    def open_file(file: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        if set(mode) & set("wax+") and not isinstance(file, int):
            try:
                disk.use(file)
            except OSError as error:
                if disk.writes > disk.room + 1 or "x" in mode:
                    raise
                return HalfWritten(opened(file, mode, *more, **named), error)
        return opened(file, mode, *more, **named)

    def make_folder(path: Any, *more: Any, **named: Any) -> None:
        if not os.path.isdir(path):
            disk.use(path)
        made(path, *more, **named)

    def copy_file(source: Any, target: Any, **named: Any) -> Any:
        disk.use(target)
        return copied(source, target, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "open", open_file)
        patch.setattr("builtins.open", open_file)
        patch.setattr(os, "mkdir", make_folder)
        patch.setattr(shutil, "copyfile", copy_file)
        yield disk
