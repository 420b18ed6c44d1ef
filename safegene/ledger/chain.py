"""The chain of records in a store, and the pointers to what is live.

::

    records/<sha256>.json         a record, immutable, named by its bytes
    tip                           {"record", "sequence"}: the newest record; every record moves it
    channels/<channel>/<target>   {"record", "release", "sequence"}: what is live; publishing records move it
    releases/<sha256>/...         what was published (see `safegene.ledger.release`)

A record is written first, if absent; then the tip is swapped, if it matches what was read; then, for a publishing
record, the channel pointer. A crash in between leaves an orphan record, never half a promotion: readers trust a pointer
only to a record on the chain. Pointers are not signed; what they name is. So a reader remembers the newest record that
it saw (``ledger.seen`` in the workspace, kept in Git): a chain without it was set back or exchanged, and is refused.
"""

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner, SSlibKey

from safegene.errors import FormatError, LedgerError, PreconditionFailed
from safegene.ledger.keys import read_public_keys
from safegene.ledger.record import PUBLISHING, Record, RecordDraft, seal, unseal
from safegene.ledger.store import ObjectMissing, Store, open_store
from safegene.workspace.digest import PREFIX, canonical_json, digest_bytes, is_digest, strict_json
from safegene.workspace.params import PromoteParams

TIP = "tip"
SEEN = "ledger.seen"
TRIES = 200


@dataclass(frozen=True)
class Pointer:
    """What a tip or channel pointer holds, and the etag to swap it with."""

    record: str
    sequence: int
    release: str | None
    etag: str


@dataclass(frozen=True)
class Ledger:
    """A chain of records in a store, read against pinned public keys.

    Attributes:
        store: where it is.
        keys: records signed by others are refused.
        cache: folder that keeps copies of records, which never change, so that a long chain in a remote store is read
            once; None (an audit) reads every record from the store.
        seen: digest of a record seen before, which the chain must hold; None for none.
    """

    store: Store
    keys: tuple[SSlibKey, ...]
    cache: Path | None = None
    seen: str | None = None

    def where(self, key: str) -> str:
        """A key's place, for messages."""
        return f"{self.store.uri}/{key}"

    def tip(self) -> Pointer | None:
        """The pointer to the newest record; None for an empty ledger.

        Raises:
            LedgerError: it is malformed, or it is gone while records of a longer chain are there or were seen before.
        """
        pointer = self._pointer(TIP, {"record", "sequence"})
        if pointer is None and self.seen:
            raise self._unseen()
        if pointer or not any(self.read(digest).sequence > 0 for digest in self.records()):
            return pointer
        if pointer := self._pointer(TIP, {"record", "sequence"}):  # the first writers came between the two looks
            return pointer
        raise LedgerError(f"expected the chain's tip, got none though linked records are there, in {self.where(TIP)}")

    def pointer(self, channel: str, target: str) -> Pointer | None:
        """The pointer to what is live for a target on a channel; not yet checked against the chain."""
        return self._pointer(channel_key(channel, target), {"record", "release", "sequence"})

    def channels(self) -> tuple[tuple[str, str], ...]:
        """Every (channel, target) that has a pointer."""
        parts = (key.split("/") for key in self.store.list("channels/"))
        return tuple((part[1], part[2]) for part in parts if len(part) == 3)

    def records(self) -> tuple[str, ...]:
        """Digests of every record in the store, on the chain or not, by their names."""
        names = (key.removeprefix("records/").removesuffix(".json") for key in self.store.list("records/"))
        return tuple(PREFIX + name for name in names)

    def read(self, digest: str) -> Record:
        """Read and verify one record: its address, signature and schema.

        Raises:
            LedgerError: it is missing, changed, or not signed by a pinned key; names the file.
        """
        key = record_key(digest)
        cached = self.cache / Path(key).name if self.cache else None
        if cached and cached.is_file() and digest_bytes(data := cached.read_bytes()) == digest:
            return unseal(data, self.keys, where=str(cached))
        try:
            data, _ = self.store.get(key)
        except ObjectMissing:
            raise LedgerError(f"expected the record {self.where(key)}, got none: it was deleted") from None
        if (got := digest_bytes(data)) != digest:
            raise LedgerError(f"expected {digest}, got {got}: the record was edited, in {self.where(key)}")
        record = unseal(data, self.keys, where=self.where(key))
        if cached:
            _keep(cached, data)
        return record

    def walk(self) -> Iterator[Record]:
        """Records from the newest to the first, each verified, each link checked.

        Raises:
            LedgerError: names the first bad link; or the record seen before that the whole chain does not hold.
        """
        tip = self.tip()
        if tip is None:
            return
        digest: str | None = tip.record
        seen = self.seen is None
        expected, named_by = tip.sequence, self.where(TIP)
        while digest is not None:
            record = self.read(digest)
            if record.sequence != expected:
                got = f"{record.sequence} in {self.where(record_key(digest))}"
                raise LedgerError(f"expected record number {expected}, named by {named_by}, got number {got}")
            yield record
            expected, named_by = expected - 1, self.where(record_key(digest))
            seen = seen or digest == self.seen
            digest = record.previous
        if not seen:
            raise self._unseen()

    def append(self, draft: RecordDraft, signer: CryptoSigner) -> Record:
        """Sign a draft and link it to the chain, however many others do so at once.

        Raises:
            LedgerError: the tip's record is not sound, or the tip never held still.
            StoreError: the store failed.
        """
        for attempt in range(TRIES):
            tip = self.tip()
            if tip:
                self.read(tip.record)
            sequence, previous = (tip.sequence + 1, tip.record) if tip else (0, None)
            data, record = seal(draft, sequence=sequence, previous=previous, signer=signer)
            self.store.put_if_absent(record_key(record.digest), data)
            body: dict[str, Any] = {"record": record.digest, "sequence": sequence}
            try:
                self._swap(TIP, body, tip)
            except PreconditionFailed:
                if not self._links(record):
                    time.sleep(random.uniform(0, min(0.5, 0.01 * 2 ** min(attempt, 6))))
                    continue
            return record
        raise LedgerError(f"expected to link a record in {TRIES} tries, got another writer first each time, in {TIP}")

    def publish(self, record: Record, expected: Pointer | None) -> None:
        """Point its channel at a publishing record, if the pointer is still ``expected``.

        Raises:
            PreconditionFailed: another promotion was first.
            LedgerError: the record does not publish.
        """
        if record.outcome not in PUBLISHING:
            raise LedgerError(f"expected a record that publishes {PUBLISHING}, got {record.outcome!r}")
        body = {"record": record.digest, "release": record.release, "sequence": record.sequence}
        self._swap(channel_key(record.channel, record.target), body, expected)

    def _unseen(self) -> LedgerError:
        return LedgerError(
            f"expected the record {self.seen}, seen before, on the chain, got a chain without it: the ledger was set "
            f"back or exchanged, in {self.where(TIP)}",
            remedy=f"restore it; where another ledger is meant, remove {SEEN} from the workspace and commit that",
        )

    def _links(self, record: Record) -> bool:
        """Whether the record is on the chain after all: the swap's reply was lost, and another linked to it since."""
        for other in self.walk():
            if other.sequence <= record.sequence:
                return other.digest == record.digest
        return False

    def _swap(self, key: str, body: dict[str, Any], expected: Pointer | None) -> None:
        data = canonical_json(body)
        if expected is None:
            self.store.put_if_absent(key, data)
        else:
            self.store.put_if_match(key, data, expected.etag)

    def _pointer(self, key: str, names: set[str]) -> Pointer | None:
        try:
            data, etag = self.store.get(key)
        except ObjectMissing:
            return None
        try:
            raw = strict_json(data, where=self.where(key))
        except FormatError as error:
            raise LedgerError(error.message) from None
        sound = isinstance(raw, dict) and set(raw) == names and is_digest(raw["record"])
        if not sound or type(raw["sequence"]) is not int or not is_digest(raw.get("release", raw["record"])):
            raise LedgerError(f"expected a pointer with {sorted(names)}, got another form, in {self.where(key)}")
        return Pointer(raw["record"], raw["sequence"], raw.get("release"), etag)


def open_ledger(params: PromoteParams, root: Path, *, cache: Path | None = None) -> Ledger:
    """The ledger that ``params.yaml`` names, read against the pinned public key; relative paths are below ``root``.

    Raises:
        LedgerError: no usable public key is pinned.
    """
    keys = read_public_keys(root / params.public_key)
    return Ledger(open_store(params.ledger, base=root), keys, cache, _read_seen(root / SEEN))


def keep_seen(ledger: Ledger, root: Path) -> None:
    """Remember the newest record in the workspace, once the whole chain was read and holds the one remembered before.

    Raises:
        LedgerError: the chain is broken, or does not hold it.
    """
    newest = next(iter(tuple(ledger.walk())), None)
    if newest is not None:
        _keep(root / SEEN, canonical_json({"record": newest.digest, "sequence": newest.sequence}) + b"\n")


def _read_seen(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        raw = strict_json(path.read_bytes(), where=str(path))
    except FormatError as error:
        raise LedgerError(error.message) from None
    if not isinstance(raw, dict) or set(raw) != {"record", "sequence"} or not is_digest(raw["record"]):
        raise LedgerError(f"expected a record and its sequence, got another form, in {path}")
    return str(raw["record"])


def require_published(pointer: Pointer, record: Record, *, channel: str, target: str, where: str) -> None:
    """Check that a pointer and the record that it names agree.

    Raises:
        LedgerError: the record is of another channel, target or release, or publishes nothing.
    """
    got = (record.channel, record.target, record.release, record.sequence)
    if record.outcome not in PUBLISHING or got != (channel, target, pointer.release, pointer.sequence):
        raise LedgerError(
            f"expected a record that publishes {pointer.release} for {target} on {channel}, got a record of outcome "
            f"{record.outcome!r} for {record.target} on {record.channel}, in {where}"
        )


def record_key(digest: str) -> str:
    """Where a record is."""
    return f"records/{digest.removeprefix(PREFIX)}.json"


def channel_key(channel: str, target: str) -> str:
    """Where a channel pointer is."""
    return f"channels/{channel}/{target}"


def _keep(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(data)
    draft.replace(path)
