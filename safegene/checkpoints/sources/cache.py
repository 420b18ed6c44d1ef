"""Verified copies by content, what a source held when it was fetched, and digests of files that have not changed since.

Below `safegene.workspace.layout.cache_folder`: ``checkpoints/<hex>/`` (a copy has that name only when it is complete),
``sources/<hex>.json`` (source and fingerprint -> digest), ``parts/<hex>/`` (unfinished downloads, kept to resume), and
``stats/<device>-<inode>.json`` (size and times -> digest).
"""

import json
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safegene.workspace.atomic import write_file
from safegene.workspace.digest import PREFIX, canonical_json, digest_bytes, digest_file, digest_json
from safegene.workspace.layout import cache_folder

SETTLED_S = 2.0  # a file changed within this time could change again within one tick of its clock


@dataclass(frozen=True)
class CachedCheckpoint:
    """A verified copy of a checkpoint.

    Attributes:
        root: its folder in the cache.
        kind: a full checkpoint, or a LoRA adapter.
        digest: of ``files``.
        files: name -> digest of its bytes.
        fingerprint: what the source held when it was copied.
    """

    root: Path
    kind: Literal["full", "lora"]
    digest: str
    files: Mapping[str, str]
    fingerprint: str


def cached_folder(digest: str) -> Path:
    """Where the copy with that digest is, or would be."""
    return cache_folder() / "checkpoints" / digest.removeprefix(PREFIX)


def download_folder(uri: str, fingerprint: str) -> Path:
    """Where an unfinished download of exactly this content is kept."""
    return cache_folder() / "parts" / digest_bytes(f"{uri}\n{fingerprint}".encode()).removeprefix(PREFIX)[:32]


def is_intact(root: Path, files: Mapping[str, str]) -> bool:
    """Whether ``root`` holds exactly ``files``, byte for byte (files unchanged since they were read are not reread)."""
    if not root.is_dir() or {path.name for path in root.iterdir()} != set(files):
        return False
    return all(not (root / name).is_symlink() and known_digest(root / name) == got for name, got in files.items())


def store_download(part: Path, files: Mapping[str, str]) -> Path:
    """Give a complete, verified download its name; a copy that is there and intact stays, a damaged one goes."""
    home = cached_folder(digest_json(dict(files)))
    home.parent.mkdir(parents=True, exist_ok=True)
    if home.exists() and not is_intact(home, files):
        shutil.rmtree(home)
    if home.exists():
        shutil.rmtree(part)
    else:
        part.rename(home)
    return home


def note_source(uri: str, local: CachedCheckpoint) -> None:
    """Note what a source held, so that fetching the same content again needs no bytes."""
    value = {"fingerprint": local.fingerprint, "digest": local.digest, "kind": local.kind, "files": dict(local.files)}
    write_file(_note(uri, local.fingerprint), canonical_json(value))


def find_cached(uri: str, fingerprint: str) -> CachedCheckpoint | None:
    """The intact copy of what the source holds now, if there is one."""
    note = _read(_note(uri, fingerprint))
    if note is None or digest_json(note["files"]) != note["digest"]:
        return None
    local = CachedCheckpoint(cached_folder(note["digest"]), note["kind"], note["digest"], note["files"], fingerprint)
    return local if is_intact(local.root, local.files) else None


def known_digest(path: Path) -> str:
    """The file's sha256, not read again while its inode, size and times are what they were."""
    before = _identity(path)
    note_path = cache_folder() / "stats" / f"{before[4]:x}-{before[3]:x}.json"  # a renamed file stays the same file
    note = _read(note_path)
    if note is not None and note["identity"] == before:
        return str(note["digest"])
    digest = digest_file(path)
    if _identity(path) == before and time.time() - max(before[1:3]) / 1e9 > SETTLED_S:
        write_file(note_path, canonical_json({"identity": before, "digest": digest}))
    return digest


def digests(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Name -> digest of each named file."""
    return {name: known_digest(root / name) for name in sorted(names)}


def _identity(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def _note(uri: str, fingerprint: str) -> Path:
    return cache_folder() / "sources" / f"{digest_json([uri, fingerprint]).removeprefix(PREFIX)[:32]}.json"


def _read(path: Path) -> Any:
    """A note, or None: a lost or damaged note only means that the work is done again."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
