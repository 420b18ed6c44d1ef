"""What this machine remembers of ledgers, outside every tree that they guard.

::

    places/<sha256 of the place>.json   which ledger a place held
    ledgers/<id>.json                   the newest record of a ledger that was seen, and every revocation

A ledger and its workspace can be set back together (``git reset --hard``, a restored backup). Then everything in them
agrees, and only a memory elsewhere can tell. The folder is ``SAFEGENE_STATE``, else a folder of the user's state. The
first use of a ledger on a machine trusts what it finds.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import platformdirs
from filelock import FileLock, Timeout
from pydantic import NonNegativeInt

from safegene.errors import FormatError, LedgerError
from safegene.workspace.atomic import write_file
from safegene.workspace.digest import PREFIX, canonical_json, digest_bytes
from safegene.workspace.fields import Digest
from safegene.workspace.parsing import Strict, parse_json

WAIT = 5.0  # seconds for another process that writes the same memory
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Anchor:
    """A record that a chain must hold.

    Attributes:
        record: its digest.
        sequence: its number.
        source: what remembers it, for messages.
    """

    record: str
    sequence: int
    source: str


class Place(Strict):
    """The content of ``places/*.json``: a ledger's place and its id, the digest of its record 0."""

    place: str
    ledger: Digest


class RevokedDigest(Strict):
    """A revocation.

    Attributes:
        record: its record.
        sequence: the record's number.
        revokes: the digest that it revokes.
        reason: why, one sentence.
        since: of a key: number of the first record that it no longer signs for; None for the revocation's own.
        signers: ids of the keys that signed the record.
    """

    record: Digest
    sequence: NonNegativeInt
    revokes: str
    reason: str
    since: int | None = None
    signers: tuple[str, ...] = ()


class Remembered(Strict):
    """The content of ``ledgers/*.json``.

    Attributes:
        ledger: the ledger's id.
        record: the newest record that was seen.
        sequence: its number.
        below: records that are known to be on the chain below it, from other memories such as ``ledger.seen``.
        revoked: every revocation that was seen.
    """

    ledger: Digest
    record: Digest
    sequence: NonNegativeInt
    below: tuple[Digest, ...] = ()
    revoked: tuple[RevokedDigest, ...] = ()


ModelT = TypeVar("ModelT", Place, Remembered)


@dataclass(frozen=True)
class Memory:
    """The memory in a folder.

    Attributes:
        folder: the folder.
    """

    folder: Path

    def place_file(self, place: str) -> Path:
        """The file that says which ledger a place held."""
        return self.folder / "places" / f"{digest_bytes(place.encode()).removeprefix(PREFIX)}.json"

    def ledger_file(self, ledger: str) -> Path:
        """The file on one ledger."""
        return self.folder / "ledgers" / f"{ledger.removeprefix(PREFIX)}.json"

    def ledger_at(self, place: str) -> str | None:
        """Id of the ledger that was at a place; None for a place that was never seen.

        Raises:
            LedgerError: the memory is malformed.
        """
        found = _read(Place, self.place_file(place))
        return found.ledger if found else None

    def recall(self, ledger: str) -> Remembered | None:
        """What is remembered of a ledger; None for a ledger that was never seen.

        Raises:
            LedgerError: the memory is malformed.
        """
        return _read(Remembered, self.ledger_file(ledger))

    def remember(
        self,
        ledger: str,
        place: str,
        newest: Anchor,
        *,
        below: tuple[str, ...] = (),
        revoked: Iterable[RevokedDigest] = (),
    ) -> None:
        """Remember the newest record, unless a newer one is remembered, and add revocations.

        A memory that cannot be written stops nothing, and the log says so: then a ledger that is set back later may
        go unnoticed on this machine.
        """
        try:
            with self._lock():
                known = self.recall(ledger)
                if known and known.sequence > newest.sequence:
                    newest, below = Anchor(known.record, known.sequence, ""), known.below
                content = Remembered(
                    ledger=ledger,
                    record=newest.record,
                    sequence=newest.sequence,
                    below=tuple(sorted(set(below) - {newest.record})),
                    revoked=tuple(dict.fromkeys([*(known.revoked if known else ()), *revoked])),
                )
                if content != known:
                    _write(self.ledger_file(ledger), content)
                if self.ledger_at(place) != ledger:
                    _write(self.place_file(place), Place(place=place, ledger=ledger))
        except (OSError, Timeout) as error:
            log.warning("the newest record of %s could not be remembered in %s: %s", place, self.folder, error)

    def forget_place(self, place: str) -> None:
        """Forget which ledger was at a place, since the user makes a new one there."""
        with suppress(OSError):
            self.place_file(place).unlink(missing_ok=True)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock", timeout=WAIT):
            yield


def open_memory() -> Memory:
    """The memory of this user on this machine."""
    named = os.environ.get("SAFEGENE_STATE")
    return Memory((Path(named) if named else Path(platformdirs.user_state_dir("safegene"))).expanduser().absolute())


def _read(model: type[ModelT], path: Path) -> ModelT | None:
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise LedgerError(
            f"expected to read what this machine remembers of the ledger, got {error}",
            remedy="make the file readable, or set SAFEGENE_STATE to another folder",
        ) from None
    try:
        return parse_json(model, data, where=str(path))
    except FormatError as error:
        raise LedgerError(error.message, remedy=f"if you trust the ledger as it is now, remove {path}") from None


def _write(path: Path, content: Place | Remembered) -> None:
    write_file(path, canonical_json(content.model_dump()) + b"\n", durable=True)
