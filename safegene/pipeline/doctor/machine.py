"""This machine: room on the disk, installed versions, and what runs beside it."""

import re
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from safegene.checkpoints.record import read_record
from safegene.checkpoints.sources.cache import cached_folder
from safegene.errors import SafegeneError
from safegene.pipeline.doctor.finding import Examined, Finding
from safegene.pipeline.init import template_folder
from safegene.workspace.layout import cache_folder

ROOM = 512 << 20  # bytes that a run writes besides checkpoints, at most, on a family of the demo's size
PROCESS = 440 << 20  # bytes of Python with torch and transformers, as in `safegene.models.memory`
GPU = Path("/dev/nvidia0")
SHOWN = 5
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)[ \\]*$", re.M)  # lines with a marker are for other platforms


def check_disk(examined: Examined) -> Iterator[Finding]:
    """Room in the workspace and in the cache."""
    for place in {examined.workspace.root, cache_folder()}:
        free = shutil.disk_usage(place).free
        if free < ROOM:
            message = f"expected {ROOM >> 20} MiB free for results, got {free >> 20} MiB, on the disk of {place}"
            yield Finding("disk", message, f"free some space: `du -sh {cache_folder()}/*` shows what the cache holds")


def check_memory(examined: Examined) -> Iterator[Finding]:
    """Main memory for the aligned model's weights, once it is fetched; `safegene plan` shows each stage's peak."""
    import psutil

    try:
        record = read_record(examined.workspace.aligned)
    except SafegeneError:
        return
    weights = sum(path.stat().st_size for path in cached_folder(record.digest).glob("*.safetensors"))
    factor = {"4bit": 0.3, "float32": 4 * record.parameters / weights if weights else 1.0}
    needed = PROCESS + int(weights * factor.get(examined.params.family.dtype, 1.0))
    if needed > (total := psutil.virtual_memory().total) and not GPU.exists():
        message = f"expected {needed >> 20} MiB of memory for the model's weights, got {total >> 20} MiB in all"
        yield Finding("memory", message, "use a machine with more memory or a GPU, or family.dtype bfloat16 or 4bit")


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
