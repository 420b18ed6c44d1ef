"""SHA-256 of bytes, files, folders and canonical JSON, written as ``sha256:<64 hex>``."""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safegene.errors import FormatError

PREFIX = "sha256:"
BLOCK = 1 << 20
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def digest_bytes(data: bytes) -> str:
    """Digest of bytes."""
    return PREFIX + hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """Digest of a file's content, read in blocks of 1 MiB."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            total.update(block)
    return PREFIX + total.hexdigest()


def digest_range(path: Path, start: int, end: int) -> str:
    """Digest of a file's bytes from ``start`` up to ``end``, read in blocks of 1 MiB."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while (left := end - file.tell()) > 0 and (block := file.read(min(BLOCK, left))):
            total.update(block)
    return PREFIX + total.hexdigest()


def digest_files(root: Path, names: Iterable[str]) -> str:
    """Digest of the canonical JSON ``{name: digest of the file}``; the order of ``names`` does not matter."""
    return digest_json({name: digest_file(root / name) for name in names})


def digest_tree(root: Path) -> str:
    """Digest of every file below ``root``. Symlinks are refused, as their content is outside.

    Raises:
        FormatError: a symlink lies below ``root``.
    """
    names = []
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            raise FormatError(f"expected only files and folders below {root}, got the symlink {path}")
        if path.is_file():
            names.append(path.relative_to(root).as_posix())
    return digest_files(root, names)


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes.

    Raises:
        FormatError: the value holds NaN, Infinity, a lone surrogate, or an object that JSON cannot express.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"expected Unicode text, got a lone surrogate ({error.reason})") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"expected a JSON value with finite numbers, got {error}") from error


def digest_json(value: Any) -> str:
    """Digest of a value's canonical JSON."""
    return digest_bytes(canonical_json(value))


def is_digest(text: object) -> bool:
    """Whether ``text`` has the form ``sha256:<64 hex>``."""
    return (
        isinstance(text, str)
        and text.startswith(PREFIX)
        and len(text) == len(PREFIX) + 64
        and all(c in "0123456789abcdef" for c in text[len(PREFIX) :])
    )


def strict_json(data: bytes | str, *, where: str) -> Any:
    """Parse JSON, refusing duplicate keys, NaN, Infinity and lone surrogates, which no file and no server can hold.

    Raises:
        FormatError: the text is not such JSON; the message names ``where``.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) != len(pairs):
            repeated = sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)[:5]
            raise FormatError(f"expected each key once, got {repeated} twice, in {where}")
        return seen

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise FormatError(f"expected finite numbers, got {text}, in {where}")
        return number

    try:
        value = json.loads(data, object_pairs_hook=unique, parse_constant=finite, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"expected JSON, got {error}, in {where}") from error
    if _SURROGATE.search(data if isinstance(data, bytes) else data.encode(errors="backslashreplace")):
        try:
            canonical_json(value)  # a pair of escapes is one character
        except FormatError as error:
            raise FormatError(f"{error.message}, in {where}") from None
    return value
