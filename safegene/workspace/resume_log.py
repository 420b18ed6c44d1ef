"""An append-only file of finished work, so that a killed run goes on where it stopped.

The file's name is the digest of everything that influences its content (the *identity*); its first line repeats the
identity, each further line is ``{"key", "value", "check"}`` with ``check`` the digest of the other two. Laws: what was
appended before a kill is read after it; half a line at the end is what a kill leaves, and is cut off; any other damage,
or a file of another identity, is an error and never an answer.
"""

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safegene.errors import DigestMismatch, FormatError
from safegene.workspace.digest import canonical_json, digest_json, strict_json

REMEDY = "delete that file: it holds only what can be made again"


class ResumeLog:
    """Finished work of one identity, in ``folder``."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.identity = dict(identity)
        self.path = folder / f"{digest_json(self.identity).removeprefix('sha256:')}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)

    def read(self) -> dict[str, Any]:
        """Key -> value of all that was appended; of two of one key the first stands.

        Raises:
            DigestMismatch: the file is of another identity, or a line was changed.
        """
        if not self.path.is_file():
            return {}
        *lines, _unfinished = self.path.read_bytes().split(b"\n")
        if not lines:
            return {}
        if self._parsed(lines[0]) != {"identity": self.identity}:
            raise DigestMismatch(f"expected the journal of its own name, got another's, in {self.path}", remedy=REMEDY)
        found: dict[str, Any] = {}
        for number, line in enumerate(lines[1:], start=2):
            row = self._parsed(line)
            if not isinstance(row, dict) or row.get("check") != _check(row.get("key"), row.get("value")):
                raise DigestMismatch(
                    f"expected the line as it was appended, got another, in {self.path}, line {number}", remedy=REMEDY
                )
            found.setdefault(row["key"], row["value"])
        return found

    def append(self, rows: Mapping[str, Any]) -> None:
        """Add finished work in one write; writers take turns, and half a line left by a kill is cut off first."""
        data = b"".join(
            canonical_json({"key": key, "value": value, "check": _check(key, value)}) + b"\n"
            for key, value in rows.items()
        )
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            kept = file.read().rfind(b"\n") + 1
            file.truncate(kept)
            head = b"" if kept else canonical_json({"identity": self.identity}) + b"\n"
            file.write(head + data)
            file.flush()
            os.fsync(file.fileno())

    def _parsed(self, line: bytes) -> Any:
        try:
            return strict_json(line, where=str(self.path))
        except FormatError as error:
            raise DigestMismatch(error.message, remedy=REMEDY) from error


def _check(key: Any, value: Any) -> str:
    return digest_json([key, value])
