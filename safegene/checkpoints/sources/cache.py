"""The cache of checkpoints, below `safegene.workspace.layout.cache_folder`.

``checkpoints/<hex>/`` holds complete copies by the digest of their content, ``parts/<hex>/`` downloads to be resumed,
``sources/<hex>.json`` what a source held when it was fetched, and ``stats/<device>-<inode>.json`` digests of files that
have not changed since. These notes are sealed (`safegene.workspace.seal`), and not used without the seal. Weights of a
folder on this machine are not copied: a link in their place leads to the file, whose digest is checked before it is
used.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safegene.checkpoints.header import read_header
from safegene.checkpoints.unsafe import is_weights_link
from safegene.checkpoints.values import FLOATS, digest_and_check
from safegene.errors import CheckpointError, FormatError
from safegene.workspace.atomic import write_optional
from safegene.workspace.digest import PREFIX, canonical_json, digest_bytes, digest_file, digest_json
from safegene.workspace.layout import cache_folder
from safegene.workspace.seal import is_sealed, seal

SETTLED_S = 2.0  # a file that changed more recently could change again without a new time stamp


@dataclass(frozen=True)
class CachedCheckpoint:
    """A verified copy of a checkpoint.

    Attributes:
        root: its folder in the cache.
        kind: a full checkpoint, or a LoRA adapter.
        digest: of ``files``.
        files: file name -> digest.
        fingerprint: of the source when it was copied.
    """

    root: Path
    kind: Literal["full", "lora"]
    digest: str
    files: Mapping[str, str]
    fingerprint: str


def cached_folder(digest: str) -> Path:
    """The folder of the copy with that digest, whether it exists or not."""
    return cache_folder() / "checkpoints" / digest.removeprefix(PREFIX)


def download_folder(uri: str, fingerprint: str) -> Path:
    """The folder of an incomplete download of exactly this content."""
    return cache_folder() / "parts" / digest_bytes(f"{uri}\n{fingerprint}".encode()).removeprefix(PREFIX)[:32]


def is_intact(root: Path, files: Mapping[str, str]) -> bool:
    """Whether ``root`` holds exactly ``files``; a file that has not changed since it was read is not read again."""
    if not root.is_dir() or {path.name for path in root.iterdir()} != set(files):
        return False
    return all(may_be_read(root / name) and known_digest(root / name) == got for name, got in files.items())


def may_be_read(path: Path) -> bool:
    """Whether it is a file, and no link except one of the cache to weights."""
    return path.is_file() and (is_weights_link(path) or not path.is_symlink())


def store_download(part: Path, files: Mapping[str, str]) -> Path:
    """Move a complete, verified download to its place; an intact copy there is kept, a damaged one is replaced."""
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
    """Record what a source held, so that the same content is not downloaded again."""
    value = {"fingerprint": local.fingerprint, "digest": local.digest, "kind": local.kind, "files": dict(local.files)}
    _write(_note(uri, local.fingerprint), value)


def find_cached(uri: str, fingerprint: str) -> CachedCheckpoint | None:
    """The intact copy of the content with that fingerprint; None where there is none."""
    note = _read(_note(uri, fingerprint), "files", "digest", "kind")
    if note is None or not isinstance(note["files"], dict) or digest_json(note["files"]) != note["digest"]:
        return None
    local = CachedCheckpoint(cached_folder(note["digest"]), note["kind"], note["digest"], note["files"], fingerprint)
    return local if is_intact(local.root, local.files) else None


def known_digest(path: Path) -> str:
    """The file's digest; the file is not read again while its inode, size and times are unchanged."""
    try:
        return checked_digest(path) if path.name.endswith(".safetensors") else _noted(path, digest_file, checked=False)
    except (CheckpointError, FormatError):  # no weights: it is refused when it is opened
        return _noted(path, digest_file, checked=False)


def checked_digest(path: Path) -> str:
    """The digest of a safetensors file whose numbers are plausible, found in one pass over its bytes.

    Raises:
        CheckpointError: a tensor holds NaN, infinity or numbers that no weight has, or is quantised.
        FormatError: the header is malformed.
    """

    def read(weights: Path) -> str:
        specs = read_header(weights).values()
        if other := [spec for spec in specs if spec.dtype not in FLOATS]:
            raise CheckpointError(f"expected weights of {', '.join(FLOATS)}, got {other[0].dtype}, in {weights}")
        return digest_and_check(weights, specs)

    return _noted(path, read, checked=True)


def _noted(path: Path, read: Callable[[Path], str], *, checked: bool) -> str:
    """The digest in the file's note, if the file has not changed since; else what ``read`` finds, and a new note."""
    before = _identity(path)
    note_path = cache_folder() / "stats" / f"{before[4]:x}-{before[3]:x}.json"  # unchanged by a rename
    note = _read(note_path, "identity", "digest")
    if note is not None and note["identity"] == before and (note.get("checked") or not checked):
        return str(note["digest"])
    digest = read(path)
    if _identity(path) == before and time.time() - max(before[1:3]) / 1e9 > SETTLED_S:
        _write(note_path, {"identity": before, "digest": digest, "checked": checked})
    return digest


def digests(root: Path, names: Iterable[str]) -> dict[str, str]:
    """File name -> digest."""
    return {name: known_digest(root / name) for name in sorted(names)}


def _identity(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def _note(uri: str, fingerprint: str) -> Path:
    return cache_folder() / "sources" / f"{digest_json([uri, fingerprint]).removeprefix(PREFIX)[:32]}.json"


def _write(path: Path, value: Mapping[str, Any]) -> None:
    write_optional(path, canonical_json({"note": value, "seal": seal([path.parent.name, path.name, value])}))


def _read(path: Path, *keys: str) -> Any:
    """The content of a note; None where it is lost, damaged, planted or of another form, so that work is done again."""
    try:
        content = json.loads(path.read_bytes())
        note, found = content["note"], content["seal"]
        if not is_sealed([path.parent.name, path.name, note], found):
            return None
    except (OSError, ValueError, RecursionError, KeyError, TypeError, FormatError):
        return None
    return note if isinstance(note, dict) and set(keys) <= set(note) else None
