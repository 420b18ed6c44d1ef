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


@contextmanager
def full_disk(folder: Path, *, room: int = 1 << 30) -> Iterator[FullDisk]:
    """Opening a file to write, making a folder and copying fail below ``folder`` once ``room`` of them were done."""
    disk = FullDisk(folder, room)
    opened, made, copied = io.open, os.mkdir, shutil.copyfile

    def open_file(file: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        if set(mode) & set("wax+") and not isinstance(file, int):
            disk.use(file)
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
