"""An append-only file of finished work: a killed run continues where it stopped, and later runs find what it computed.

It is also the lasting cache of replies and judges' decisions: nothing is removed when a run ends.

The file's name is the digest of everything that its content depends on (the *identity*). Its first line holds the
identity; each further line is ``{"key", "value", "check"}``, where ``check`` is the digest of key and value. What was
appended before a kill is read after it. An incomplete last line, which a kill leaves, is cut off; any other damage, or
a file of another identity, raises `DigestMismatch`.
"""

import fcntl
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safegene.errors import DigestMismatch, FormatError
from safegene.workspace.digest import canonical_json, digest_json, strict_json

log = logging.getLogger(__name__)
REMEDY = "delete that file: its content can be computed again"


class ResumeLog:
    """The finished work of one identity, in ``folder``."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.identity = dict(identity)
        self.path = folder / f"{digest_json(self.identity).removeprefix('sha256:')}.jsonl"

    def read(self) -> dict[str, Any]:
        """Key -> value of everything appended; of two values for one key the first counts.

        Raises:
            DigestMismatch: the file is of another identity, or a line has changed.
        """
        if not self.path.is_file():
            return {}
        *lines, _unfinished = self.path.read_bytes().split(b"\n")
        if not lines:
            return {}
        if self._parsed(lines[0]) != {"identity": self.identity}:
            raise DigestMismatch(
                f"expected the identity that the file is named by, got another one, in {self.path}", remedy=REMEDY
            )
        values: dict[str, Any] = {}
        for number, line in enumerate(lines[1:], start=2):
            row = self._parsed(line)
            if not isinstance(row, dict) or row.get("check") != _check(row.get("key"), row.get("value")):
                raise DigestMismatch(
                    f"expected the line as it was appended, got a changed one, in {self.path}, line {number}",
                    remedy=REMEDY,
                )
            values.setdefault(row["key"], row["value"])
        return values

    def append(self, rows: Mapping[str, Any]) -> None:
        """Append finished work in one write, under a lock; an incomplete last line is cut off first.

        Where it cannot be written (a full disk), the log says so and the work goes on: it would be computed again.
        """
        data = b"".join(
            canonical_json({"key": key, "value": value, "check": _check(key, value)}) + b"\n"
            for key, value in rows.items()
        )
        try:
            self._append(data)
        except OSError as error:
            log.warning("finished work is not kept for a later run: %s", error.strerror or error)

    def _append(self, data: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
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
