"""Seals: keyed digests on what lies in the cache, so that who can write there but has no key cannot plant anything.

A seal is an HMAC-SHA256 (RFC 2104) with a key of 32 random bytes, ``cache.key`` in the folder of private keys, outside
of every repository and of the cache. It is made when it is first needed. Machines that share a cache use each other's
work where they share the key: copy the file, mode 600. Where the key is missing, differs or cannot be kept, what the
cache holds is computed again; that is never an error.
"""

import hashlib
import hmac
import logging
import os
import secrets
import stat
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from safegene.workspace.atomic import write_file
from safegene.workspace.digest import PREFIX, canonical_json
from safegene.workspace.layout import cache_folder, keys_folder

KEY = "cache.key"
BYTES = 32
log = logging.getLogger(__name__)


def seal(value: Any) -> str:
    """The seal of a plain JSON value."""
    return hmac.new(_key(keys_folder()), canonical_json(value), hashlib.sha256).hexdigest()


def is_sealed(value: Any, found: object) -> bool:
    """Whether ``found`` is the seal of the value."""
    return isinstance(found, str) and hmac.compare_digest(seal(value).encode(), found.encode(errors="replace"))


def key_id() -> str:
    """A name for the key, which says nothing about it: 16 hexadecimal digits."""
    return seal("the key's name")[:16]


def seal_artefact(digest: str) -> None:
    """Note in the cache that a holder of the key made the artefact with this digest."""
    try:
        write_file(_artefact_note(digest), seal(["artefact", digest]))
    except OSError as error:
        log.warning("the artefact %s has no seal, and is made again before a promotion: %s", digest, error)


def is_artefact_sealed(digest: str) -> bool:
    """Whether a holder of the key made the artefact with this digest."""
    with suppress(OSError, UnicodeDecodeError):
        return is_sealed(["artefact", digest], _artefact_note(digest).read_text(encoding="ascii"))
    return False


def _artefact_note(digest: str) -> Path:
    return cache_folder() / "sealed" / f"{digest.removeprefix(PREFIX)}-{key_id()}"


@cache
def _key(folder: Path) -> bytes:
    """The key in ``folder``, made where there is none; one for this process only where it cannot be kept there."""
    path = folder.expanduser() / KEY
    try:
        if not path.exists():
            _make(path)
        return _read(path)
    except (OSError, ValueError) as error:
        log.warning("the cache serves this process only: expected a key in %s, got %s", path, error)
        return secrets.token_bytes(BYTES)


def _read(path: Path) -> bytes:
    if mode := stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ValueError(f"one that others than its owner may use ({mode:03o}): chmod 600 {path}")
    key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    if len(key) != BYTES:
        raise ValueError(f"{len(key)} bytes, not {BYTES}")
    return key


def _make(path: Path) -> None:
    """Write a new key, unless another process was first."""
    folder = path.parent.resolve()
    if any((parent / ".git").exists() for parent in (folder, *folder.parents)):
        raise ValueError("a folder in a Git repository, where somebody could commit it: set SAFEGENE_KEYS to another")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{KEY}.{os.getpid()}.draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(BYTES) + "\n")
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
