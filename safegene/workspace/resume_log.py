"""An append-only file of finished work: a killed run continues where it stopped, and later runs find what it computed.

It is also the lasting cache of replies and judges' decisions: nothing is removed when a run ends.

The file's name is the digest of everything that its content depends on (the *identity*), and the name of the key that
seals it. Its first line holds the identity, for people; each further line is ``{"key", "seal", "value"}``, where
``seal`` is over identity, key and value (`safegene.workspace.seal`). What was appended before a kill is read after it.
A line without this seal is passed over, be it incomplete, changed, planted, or of another identity or key: its work is
done again.
"""

import fcntl
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safegene.errors import FormatError
from safegene.workspace.digest import canonical_json, digest_json, strict_json
from safegene.workspace.seal import is_sealed, key_id, seal

log = logging.getLogger(__name__)


class ResumeLog:
    """The finished work of one identity, in ``folder``."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.identity = dict(identity)
        self._digest = digest_json(self.identity)
        self.path = folder / f"{self._digest.removeprefix('sha256:')}-{key_id()}.jsonl"

    def read(self) -> dict[str, Any]:
        """Key -> value of everything appended under this key; of two values for one key the first counts."""
        if not self.path.is_file():
            return {}
        lines = self.path.read_bytes().split(b"\n")[1:-1]  # without the identity, and what a kill left
        rows = [row for line in lines if (row := self._row(line)) is not None]
        if len(rows) < len(lines):
            log.warning(
                "%d lines of %s are not as they were appended: computed again", len(lines) - len(rows), self.path
            )
        values: dict[str, Any] = {}
        for key, value in rows:
            values.setdefault(key, value)
        return values

    def append(self, rows: Mapping[str, Any]) -> None:
        """Append finished work in one write, under a lock; an incomplete last line is cut off first.

        Where it cannot be written (a full disk), the log says so and the work goes on: it would be computed again.
        """
        data = b"".join(
            canonical_json({"key": key, "value": value, "seal": seal([self._digest, key, value])}) + b"\n"
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

    def _row(self, line: bytes) -> tuple[str, Any] | None:
        """Key and value of a line; None where it has not this log's seal."""
        try:
            row = strict_json(line, where=str(self.path))
        except FormatError:
            return None
        if not isinstance(row, dict) or not isinstance(key := row.get("key"), str):
            return None
        value = row.get("value")
        return (key, value) if is_sealed([self._digest, key, value], row.get("seal")) else None
