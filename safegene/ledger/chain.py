"""The chain of records in a store, and the pointers to what is live.

::

    records/<sha256>.json         a record; its name is the digest of its bytes, and it never changes
    tip                           {"record", "sequence"}: the newest record; every record moves it
    channels/<channel>/<target>   {"record", "release", "sequence"}: what is live; publishing records move it
    releases/<sha256>/...         what was published (see `safegene.ledger.release`)

A writer first writes the record, then replaces the tip if the tip is still what it read, then, for a publishing record,
replaces the channel pointer in the same way. A crash in between leaves an orphan record, never half a promotion:
readers follow a pointer only to a record on the chain. Pointers are not signed; the records that they name are. Each
workspace remembers the newest record that it saw (``ledger.seen``, tracked by Git): a chain that does not hold this
record was set back or exchanged, and is refused.
"""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import NonNegativeInt
from securesystemslib.signer import CryptoSigner, SSlibKey

from safegene.errors import FormatError, LedgerError, PreconditionFailed
from safegene.ledger.pins import read_pinned_keys
from safegene.ledger.record import PUBLISHING, Record, RecordDraft, seal, unseal
from safegene.ledger.store import ObjectMissing, Store, open_store
from safegene.workspace.atomic import write_file
from safegene.workspace.digest import PREFIX, canonical_json, digest_bytes
from safegene.workspace.fields import Digest
from safegene.workspace.params import PromoteParams
from safegene.workspace.parsing import Strict, parse_json

TIP = "tip"
SEEN = "ledger.seen"
TRIES = 200


class Tip(Strict):
    """The content of ``tip`` and of ``ledger.seen``: a record and its number in the chain."""

    record: Digest
    sequence: NonNegativeInt


class Pointer(Tip):
    """The content of a channel pointer: the record that is live, and its release."""

    release: Digest


TipT = TypeVar("TipT", bound=Tip)


@dataclass(frozen=True)
class Stored(Generic[TipT]):
    """A tip or pointer as it was read: its content, and the etag that replaces exactly this version."""

    content: TipT
    etag: str


@dataclass(frozen=True)
class Ledger:
    """A chain of records in a store, verified against pinned public keys.

    Attributes:
        store: where the ledger is.
        keys: the pinned public keys; records that none of them signed are refused.
        cache: folder for copies of records, so that a long chain in a remote store is downloaded once; None reads every
            record from the store, as an audit must.
        seen: digest of a record that the chain must hold; None for none.
        signatures: see `safegene.ledger.pins.PinnedKeys`.
    """

    store: Store
    keys: tuple[SSlibKey, ...]
    cache: Path | None = None
    seen: str | None = None
    signatures: tuple[tuple[int, int], ...] = ()

    def where(self, key: str) -> str:
        """The place of a key, for messages."""
        return f"{self.store.uri}/{key}"

    def tip(self) -> Stored[Tip] | None:
        """The pointer to the newest record; None for an empty ledger.

        Raises:
            LedgerError: it is malformed, or it is missing although the store holds, or held, linked records.
        """
        tip = self._read(Tip, TIP)
        if tip is None and self.seen:
            raise self._unseen()
        if tip or not any(self.read(digest).sequence > 0 for digest in self.records()):
            return tip
        if tip := self._read(Tip, TIP):  # other writers created it since the first read
            return tip
        raise LedgerError(f"expected the tip of the chain, got none although there are records, in {self.where(TIP)}")

    def pointer(self, channel: str, target: str) -> Stored[Pointer] | None:
        """The pointer to what is live for a target on a channel, not checked against the chain; None for none.

        Raises:
            LedgerError: it is malformed.
        """
        return self._read(Pointer, channel_key(channel, target))

    def channels(self) -> tuple[tuple[str, str], ...]:
        """Every (channel, target) that has a pointer."""
        parts = (key.split("/") for key in self.store.list("channels/"))
        return tuple((part[1], part[2]) for part in parts if len(part) == 3)

    def records(self) -> tuple[str, ...]:
        """Digests of all records in the store, on the chain or not, as the file names say."""
        names = (key.removeprefix("records/").removesuffix(".json") for key in self.store.list("records/"))
        return tuple(PREFIX + name for name in names)

    def read(self, digest: str) -> Record:
        """Read a record and verify its address, signature and schema.

        Raises:
            LedgerError: the record is missing, changed, or not signed by a pinned key; names the file.
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
            write_file(cached, data)
        return record

    def walk(self) -> Iterator[Record]:
        """The records from the newest to the first, each verified, with each link checked.

        Raises:
            LedgerError: a link is broken, or the chain does not hold the record ``seen``.
        """
        tip = self.tip()
        if tip is None:
            return
        digest: str | None = tip.content.record
        seen = self.seen is None
        expected, named_by = tip.content.sequence, self.where(TIP)
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
        """Sign a draft and link it to the chain; safe with any number of writers at once.

        Raises:
            LedgerError: the newest record is not sound, or other writers were faster `TRIES` times.
            StoreError: the store failed.
        """
        for attempt in range(TRIES):
            tip = self.tip()
            if tip:
                self.read(tip.content.record)
            sequence, previous = (tip.content.sequence + 1, tip.content.record) if tip else (0, None)
            data, record = seal(draft, sequence=sequence, previous=previous, signer=signer)
            self.store.put_if_absent(record_key(record.digest), data)
            try:
                self._swap(TIP, Tip(record=record.digest, sequence=sequence), tip)
            except PreconditionFailed:
                if not self._links(record):
                    time.sleep(random.uniform(0, min(0.5, 0.01 * 2 ** min(attempt, 6))))
                    continue
            return record
        raise LedgerError(f"expected to link a record in {TRIES} tries, got another writer first each time, in {TIP}")

    def publish(self, record: Record, expected: Stored[Pointer] | None) -> None:
        """Set the pointer of the record's channel and target to the record, if the pointer is still ``expected``.

        Raises:
            PreconditionFailed: another promotion was first.
            LedgerError: the record has no release.
        """
        if record.release is None:
            raise LedgerError(f"expected a record of outcome {' or '.join(PUBLISHING)}, got {record.outcome!r}")
        pointer = Pointer(record=record.digest, release=record.release, sequence=record.sequence)
        self._swap(channel_key(record.channel, record.target), pointer, expected)

    def _unseen(self) -> LedgerError:
        return LedgerError(
            f"expected the record {self.seen}, seen before, on the chain, got a chain without it: the ledger was set "
            f"back or exchanged, in {self.where(TIP)}",
            remedy=f"restore the ledger; if another ledger is meant, remove {SEEN} from the workspace and commit that",
        )

    def _links(self, record: Record) -> bool:
        """Whether the record is on the chain although its swap failed: the reply was lost, and others linked to it."""
        for other in self.walk():
            if other.sequence <= record.sequence:
                return other.digest == record.digest
        return False

    def _swap(self, key: str, new: Tip, expected: Stored[TipT] | None) -> None:
        data = canonical_json(new.model_dump())
        if expected is None:
            self.store.put_if_absent(key, data)
        else:
            self.store.put_if_match(key, data, expected.etag)

    def _read(self, model: type[TipT], key: str) -> Stored[TipT] | None:
        try:
            data, etag = self.store.get(key)
        except ObjectMissing:
            return None
        return Stored(_parse(model, data, where=self.where(key)), etag)


def open_ledger(params: PromoteParams, root: Path, *, cache: Path | None = None) -> Ledger:
    """The ledger that ``params.yaml`` names, with the pinned public keys.

    Args:
        params: place of the ledger and of the public keys; relative paths are relative to ``root``.
        root: the workspace, which holds ``ledger.seen``.
        cache: see `Ledger`.

    Raises:
        LedgerError: there is no usable public key, or ``ledger.seen`` is malformed.
    """
    pinned = read_pinned_keys(root / params.public_key)
    seen = root / SEEN
    last = _parse(Tip, seen.read_bytes(), where=str(seen)).record if seen.is_file() else None
    return Ledger(open_store(params.ledger, base=root), pinned.keys, cache, last, pinned.signatures)


def keep_seen(ledger: Ledger, root: Path) -> None:
    """Write the newest record to ``ledger.seen``, after the whole chain was verified.

    Raises:
        LedgerError: the chain is broken, or does not hold the record that was remembered before.
    """
    newest = next(iter(tuple(ledger.walk())), None)
    if newest is not None:
        content = Tip(record=newest.digest, sequence=newest.sequence)
        write_file(root / SEEN, canonical_json(content.model_dump()) + b"\n")


def _parse(model: type[TipT], data: bytes, *, where: str) -> TipT:
    try:
        return parse_json(model, data, where=where)
    except FormatError as error:
        raise LedgerError(error.message) from None


def require_published(pointer: Pointer, record: Record, *, channel: str, target: str, where: str) -> None:
    """Check that a pointer and the record that it names agree.

    Raises:
        LedgerError: the record is of another channel, target or release, or has no release.
    """
    named = (record.channel, record.target, record.release, record.sequence)
    if named != (channel, target, pointer.release, pointer.sequence):
        raise LedgerError(
            f"expected a record that publishes {pointer.release} for {target} on {channel}, got a record of outcome "
            f"{record.outcome!r} for {record.target} on {record.channel}, in {where}"
        )


def record_key(digest: str) -> str:
    """The key of a record in the store."""
    return f"records/{digest.removeprefix(PREFIX)}.json"


def channel_key(channel: str, target: str) -> str:
    """The key of a channel pointer in the store."""
    return f"channels/{channel}/{target}"
