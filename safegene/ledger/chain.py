"""The chain of records in a store, and the pointers to what is live.

::

    records/<sha256>.json         a record; its name is the digest of its bytes, and it never changes
    tip                           {"record", "sequence"}: the newest record; every record moves it
    channels/<channel>/<target>   {"record", "release", "sequence"}: what is live; publishing records move it
    revocations/<sha256>.json     a copy of each revocation, written before its record
    snapshots/<sha256>.json       a signed summary of the chain up to that record (see `safegene.ledger.snapshot`)
    objects/<sha256>.json         what a record or a snapshot names by its digest instead of holding it
    releases/<sha256>/...         what was published (see `safegene.ledger.release`)

A writer first writes the record, then replaces the tip if the tip is still what it read. With that the record is on the
chain, and the chain alone says what it did: a publishing record takes effect if it replaces what was live before it,
so of two promotions at once one takes effect. Then the writer replaces the channel pointer. A crash in between leaves
an orphan record, or a pointer that any later writer moves on, never half a promotion: readers follow a pointer only to
the record that the chain says is live. Pointers are not signed; the records that they name are.

Records name the ledger by the digest of record 0. What was seen before must still be on the chain: the newest record in
``ledger.seen``, which Git tracks, there and at Git's HEAD, and the one in this machine's memory
(`safegene.ledger.memory`). Other files in the store, such as ``.DS_Store``, are ignored, and named by an audit.
"""

import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from securesystemslib.signer import Signer, SSlibKey

from safegene.errors import LedgerError, PreconditionFailed
from safegene.ledger.anchors import workspace_anchors
from safegene.ledger.memory import Anchor, Memory, open_memory
from safegene.ledger.pins import read_pinned_keys
from safegene.ledger.pointers import (
    TIP,
    Pointer,
    Stored,
    Tip,
    TipT,
    channel_key,
    is_ledger_key,
    object_key,
    parse_tip,
    record_key,
)
from safegene.ledger.record import FIELDS, PUBLISHING, Record, RecordDraft, seal, unseal
from safegene.ledger.store import ObjectMissing, Store, open_store
from safegene.workspace.atomic import write_optional
from safegene.workspace.digest import PREFIX, canonical_json, digest_bytes, strict_json
from safegene.workspace.operation_params import PromoteParams

TRIES = 200
INLINE = 2048
"""Largest canonical JSON, in bytes, of a value that stays in a record; see `Ledger.store_apart`."""


@dataclass(frozen=True)
class Ledger:
    """A chain of records in a store, verified against pinned public keys.

    Attributes:
        store: where the ledger is.
        keys: the pinned public keys; records that none of them signed are refused.
        cache: folder for copies of records, so that a long chain in a remote store is downloaded once; None reads every
            record from the store, as an audit must.
        anchors: records that the chain must hold, as the workspace remembers them.
        memory: what this machine remembers; None for nothing.
        signatures: see `safegene.ledger.pins.PinnedKeys`.
    """

    store: Store
    keys: tuple[SSlibKey, ...]
    cache: Path | None = None
    anchors: tuple[Anchor, ...] = ()
    memory: Memory | None = None
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
        if tip is None and (anchor := next(iter(self.required()), None)):
            if tip := self._read(Tip, TIP):  # another writer created it, and its record was remembered
                return tip
            raise self.set_back(anchor)
        if tip or not any(self.read(digest).sequence > 0 for digest in self.records()):
            return tip
        if tip := self._read(Tip, TIP):  # other writers created it since the first read
            return tip
        raise LedgerError(f"expected the tip of the chain, got none although there are records, in {self.where(TIP)}")

    def start(self) -> tuple[Tip, tuple[Anchor, ...]] | None:
        """The newest record, and the records that the chain below it must hold; None for an empty ledger.

        Raises:
            LedgerError: as `tip` and `required`.
        """
        stored = self.tip()
        if stored is None:
            return None
        anchors = self.required(self.identity(self.read(stored.content.record)))
        if any(anchor.sequence > stored.content.sequence for anchor in anchors):
            stored = self.tip() or stored  # other writers went on, and their records were remembered
        return stored.content, anchors

    def required(self, ledger: str | None = None) -> tuple[Anchor, ...]:
        """The records that the chain must hold.

        Args:
            ledger: the id of the ledger in the store; None where there is no record.

        Raises:
            LedgerError: another ledger was in this place before.
        """
        if self.memory is None:
            return self.anchors
        before = self.memory.ledger_at(self.store.uri)
        if ledger and before and before != ledger:
            raise LedgerError(
                f"expected the ledger {before}, seen before, at {self.store.uri}, as {self.memory.folder} remembers, "
                f"got the ledger {ledger}: the ledger was exchanged",
                remedy=f"restore the ledger; if this one is meant, remove {self.memory.place_file(self.store.uri)}",
            )
        here = ledger or before
        known = self.memory.recall(here) if here else None
        if known is None:
            return self.anchors
        newest = Anchor(known.record, known.sequence, str(self.memory.ledger_file(known.ledger)))
        return (newest, *(anchor for anchor in self.anchors if anchor.record not in known.below))

    def pointer(self, channel: str, target: str) -> Stored[Pointer] | None:
        """The pointer to what is live for a target on a channel, not checked against the chain; None for none.

        Raises:
            LedgerError: it is malformed.
        """
        return self._read(Pointer, channel_key(channel, target))

    def channels(self) -> tuple[tuple[str, str], ...]:
        """Every (channel, target) that has a pointer."""
        parts = (key.split("/") for key in self.store.list("channels/") if is_ledger_key(key))
        return tuple((part[1], part[2]) for part in parts)

    def records(self, kind: str = "records") -> tuple[str, ...]:
        """Digests of all records in the store, on the chain or not, as the file names say.

        Args:
            kind: ``revocations`` for the copies of revocations, ``snapshots`` for the records that have one.
        """
        names = (Path(key).stem for key in self.store.list(f"{kind}/") if is_ledger_key(key))
        return tuple(PREFIX + name for name in names)

    def strays(self) -> tuple[str, ...]:
        """Keys in the store that are nothing of the ledger, such as ``records/.DS_Store``; they are ignored."""
        return tuple(key for key in self.store.list("") if not is_ledger_key(key))

    def read(self, digest: str, *, kind: str = "records") -> Record:
        """Read a record and verify its address, signature and schema.

        Args:
            digest: the record.
            kind: ``revocations`` for the copy of a revocation.

        Raises:
            LedgerError: the record is missing, changed, or not signed by a pinned key; names the file.
        """
        key = record_key(digest, kind)
        cached = self.cache / Path(key).name if self.cache else None
        if cached and cached.is_file() and digest_bytes(data := cached.read_bytes()) == digest:
            return unseal(data, self.keys, where=str(cached))
        data = self._content(key, digest, "record")
        record = unseal(data, self.keys, where=self.where(key))
        if cached:
            write_optional(cached, data)
        return record

    def object(self, digest: str) -> Any:
        """The JSON value that a record or a snapshot names by its digest.

        Raises:
            LedgerError: it is missing or changed; names the file.
        """
        key = object_key(digest)
        return strict_json(self._content(key, digest, "object"), where=self.where(key))

    def put_object(self, value: Any) -> str:
        """Store a JSON value under the digest of its canonical JSON, and return the digest."""
        data = canonical_json(value)
        self.store.put_if_absent(object_key(digest := digest_bytes(data)), data)
        return digest

    def store_apart(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of a record with each large part replaced by ``{"object": digest, "bytes": size}``, once stored.

        A part is a value below a field, such as the shapes of a model's tensors, which every record of this model
        would repeat. Only parts that name no digest are moved: a revocation finds what a record rests on by the record
        alone.
        """
        return {
            name: {key: self._apart(part) for key, part in value.items()} if isinstance(value, Mapping) else value
            for name, value in fields.items()
        }

    def _apart(self, part: Any) -> Any:
        if not isinstance(part, Mapping | list):
            return part
        data = canonical_json(part)
        if len(data) <= INLINE or PREFIX.encode() in data:
            return part
        return {"object": self.put_object(part), "bytes": len(data)}

    def back_from(self, tip: Tip, *, named_by: str) -> Iterator[Record]:
        """The records from ``tip`` to the first, each verified, with each link checked.

        Raises:
            LedgerError: a link is broken, or a record names another ledger.
        """
        digest: str | None = tip.record
        expected, ids = tip.sequence, dict[str, str]()
        while digest is not None:
            record, here = self.read(digest), self.where(record_key(digest))
            if record.sequence != expected:
                got = f"{record.sequence} in {here}"
                raise LedgerError(f"expected record number {expected}, named by {named_by}, got number {got}")
            if record.ledger:
                ids.setdefault(record.ledger, here)
            if record.previous is None:
                ids.setdefault(digest, here)
            if len(ids) > 1:
                (one, first), (other, second) = list(ids.items())[:2]
                raise LedgerError(f"expected records of one ledger, got {one} in {first}, and {other} in {second}")
            yield record
            expected, named_by = expected - 1, here
            digest = record.previous

    def walk(self) -> Iterator[Record]:
        """The records from the newest to the first, each verified, with each link checked.

        Raises:
            LedgerError: a link is broken, or the chain does not hold a record that was seen before.
        """
        start = self.start()
        if start is None:
            return
        tip, anchors = start
        held = dict[int, str]()
        for record in self.back_from(tip, named_by=self.where(TIP)):
            held[record.sequence] = record.digest
            yield record
        for anchor in anchors:
            if held.get(anchor.sequence) != anchor.record:
                raise self.set_back(anchor)

    def identity(self, record: Record) -> str:
        """The id of the ledger that a record on the chain belongs to: the digest of record 0."""
        if record.ledger or record.previous is None:
            return record.ledger or record.digest
        tip = Tip(record=record.digest, sequence=record.sequence)
        return [earlier.digest for earlier in self.back_from(tip, named_by=self.where(TIP))][-1]

    def append(self, draft: RecordDraft, signer: Signer) -> Record:
        """Sign a draft and link it to the chain; safe with any number of writers at once.

        Raises:
            LedgerError: the newest record is not sound, or other writers were faster `TRIES` times.
            StoreError: the store failed.
        """
        draft = replace(draft, fields=self.store_apart(draft.fields))
        for attempt in range(TRIES):
            tip = self.tip()
            ledger = self.identity(self.read(tip.content.record)) if tip else None
            sequence, previous = (tip.content.sequence + 1, tip.content.record) if tip else (0, None)
            data, record = seal(draft, sequence=sequence, previous=previous, signer=signer, ledger=ledger)
            if record.outcome == "revocation":
                self.store.put_if_absent(record_key(record.digest, "revocations"), data)
            self.store.put_if_absent(record_key(record.digest), data)
            try:
                self._swap(TIP, Tip(record=record.digest, sequence=sequence), tip)
            except PreconditionFailed:
                if not self._links(record):
                    time.sleep(random.uniform(0, min(0.5, 0.01 * 2 ** min(attempt, 6))))
                    continue
            if tip is None and self.memory:  # the ledger is this writer's own: there is nothing to trust
                self.memory.remember(record.digest, self.store.uri, Anchor(record.digest, 0, ""))
            return record
        raise LedgerError(f"expected to link a record in {TRIES} tries, got another writer first each time, in {TIP}")

    def publish(self, record: Record, expected: Stored[Pointer] | None) -> None:
        """Set the pointer of the record's channel and target to the record, if the pointer is still ``expected``.

        Raises:
            PreconditionFailed: another writer was first.
            LedgerError: the record has no release.
        """
        if record.release is None:
            raise LedgerError(f"expected a record of outcome {' or '.join(PUBLISHING)}, got {record.outcome!r}")
        pointer = Pointer(record=record.digest, release=record.release, sequence=record.sequence)
        self._swap(channel_key(record.channel, record.target), pointer, expected)

    def set_back(self, anchor: Anchor) -> LedgerError:
        """The error for a chain that does not hold a record that was seen before."""
        return LedgerError(
            f"expected the record {anchor.record}, number {anchor.sequence}, seen before, on the chain, as "
            f"{anchor.source} remembers, got a chain without it: the ledger was set back or exchanged, in "
            f"{self.where(TIP)}",
            remedy=f"restore the ledger (`git pull`, or a backup); if this ledger is meant, remove what remembers the "
            f"other: {anchor.source}",
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

    def _content(self, key: str, digest: str, what: str) -> bytes:
        try:
            data, _ = self.store.get(key)
        except ObjectMissing:
            raise LedgerError(f"expected the {what} {self.where(key)}, got none: it was deleted") from None
        if (got := digest_bytes(data)) != digest:
            raise LedgerError(f"expected {digest}, got {got}: the {what} was edited, in {self.where(key)}")
        return data

    def _read(self, model: type[TipT], key: str) -> Stored[TipT] | None:
        try:
            data, etag = self.store.get(key)
        except ObjectMissing:
            return None
        return Stored(parse_tip(model, data, where=self.where(key)), etag)


def open_ledger(params: PromoteParams, root: Path, *, cache: Path | None = None) -> Ledger:
    """The ledger that ``params.yaml`` names, with the pinned public keys and what is remembered of it.

    Args:
        params: place of the ledger and of the public keys; relative paths are relative to ``root``.
        root: the workspace, which holds ``ledger.seen``.
        cache: see `Ledger`.

    Raises:
        LedgerError: there is no usable public key, the pinned keys are not those of Git's HEAD, or ``ledger.seen`` is
            malformed.
    """
    pinned = read_pinned_keys(root / params.public_key)
    anchors, other_keys = workspace_anchors(root, params.public_key)
    store = open_store(params.ledger, base=root)
    ledger = Ledger(store, pinned.keys, cache, anchors, open_memory(), pinned.signatures)
    if other_keys is not None:
        from safegene.ledger.key_changes import require_recorded_change  # which is about ledgers

        require_recorded_change(ledger, other_keys, root / params.public_key)
    return ledger


def stored_apart(record: Record) -> set[str]:
    """Digests of the objects that a record names instead of holding them; see `Ledger.store_apart`."""
    values = (getattr(record.predicate, name) for name in FIELDS)
    parts = [part for value in values if isinstance(value, dict) for part in value.values()]
    return {str(part["object"]) for part in parts if isinstance(part, dict) and set(part) == {"object", "bytes"}}
