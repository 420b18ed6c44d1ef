"""This machine: room on the disk, installed versions, and what runs beside it."""

import re
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from safegene.pipeline.doctor.finding import Examined, Finding
from safegene.pipeline.init import template_folder
from safegene.workspace.layout import cache_folder

ROOM = 512 << 20  # bytes that a run writes besides checkpoints, at most, on a family of the demo's size
SHOWN = 5
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)[ \\]*$", re.M)  # lines with a marker are for other platforms


def check_disk(examined: Examined) -> Iterator[Finding]:
    """Room in the workspace and in the cache."""
    for place in {examined.workspace.root, cache_folder()}:
        free = shutil.disk_usage(place).free
        if free < ROOM:
            message = f"expected {ROOM >> 20} MiB free for results, got {free >> 20} MiB, on the disk of {place}"
            yield Finding("disk", message, f"free some space: `du -sh {cache_folder()}/*` shows what the cache holds")


def check_versions() -> Iterator[Finding]:
    """The installed versions of the packages that the lock names; other versions were not tested together."""
    lock = template_folder() / "requirements.lock"
    pins = _PIN.findall(lock.read_text(encoding="utf-8")) if lock.is_file() else []
    other = [
        f"{name} {got} (locked: {wanted})" for name, wanted in pins if (got := _installed(name)) not in (None, wanted)
    ]
    if other:
        message = f"expected the versions of requirements.lock, which were tested together, got {_few(other)}"
        yield Finding("versions", message, f"pip install -r {lock}", stops=False)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _few(items: list[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more
