"""What is live, what was, what a record rests on, and what was revoked: questions to a chain that change nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safegene.digest import canonical_json, is_digest
from safegene.errors import LedgerError
from safegene.ledger.chain import Ledger, Pointer, channel_key, require_published
from safegene.ledger.record import Record


@dataclass(frozen=True)
class Live:
    """What is live: the pointer, the record that it names, and the chain from the newest record to the first."""

    pointer: Pointer
    record: Record
    chain: tuple[Record, ...]

    @property
    def release(self) -> str:
        """Digest of the release that is live."""
        return str(self.record.release)

    @property
    def before(self) -> tuple[Record, ...]:
        """The live record and every one that was live before it, newest first."""
        known, found = self._known, [self.record]
        while (earlier := found[-1].replaces) and earlier in known:
            found.append(known[earlier])
        return tuple(found)

    @property
    def predecessor(self) -> Record | None:
        """What was live before the live release was first promoted: a promotion itself, not a rollback to it."""
        earlier = self._known.get(self._promotion(self.record).replaces or "")
        return self._promotion(earlier) if earlier else None

    @property
    def _known(self) -> Mapping[str, Record]:
        return {record.digest: record for record in self.chain}

    def _promotion(self, record: Record) -> Record:
        known = self._known
        while record.outcome == "rollback" and record.restores in known:
            record = known[str(record.restores)]
        return record


def live(ledger: Ledger, target: str, channel: str) -> Live | None:
    """What is live for a target on a channel; None when nothing is.

    Raises:
        LedgerError: the pointer names no record on the chain, or one of something else.
    """
    pointer = ledger.pointer(channel, target)
    if pointer is None:
        return None
    where = ledger.where(channel_key(channel, target))
    chain = tuple(ledger.walk())
    found = next((record for record in chain if record.digest == pointer.record), None)
    if found is None:
        raise LedgerError(f"expected a pointer to a record on the chain, got one to {pointer.record}, in {where}")
    require_published(pointer, found, channel=channel, target=target, where=where)
    return Live(pointer, found, chain)


def find_record(name: str, records: Sequence[Record]) -> Record | None:
    """The record that a sequence names, or at least 8 digits of its own or its release's digest."""
    if name.isdecimal() and len(name) < 8:
        return next((record for record in records if record.sequence == int(name)), None)
    digits = name.removeprefix("sha256:")
    named = (r for r in records if any(f":{digits}" in digest for digest in (r.digest, str(r.release))))
    return next(named, None) if len(digits) >= 8 else None


def named_digests(content: Mapping[str, Any]) -> frozenset[str]:
    """Every digest that stands anywhere in some plain JSON values."""
    return frozenset(text for text in canonical_json(dict(content)).decode().split('"') if is_digest(text))


def revocation(chain: Sequence[Record], used: frozenset[str]) -> str:
    """Why one of these digests is revoked; empty if none is."""
    for record in chain:
        if record.outcome == "revocation" and record.revokes in used:
            return f"record {record.sequence} revoked {record.revokes}: {record.reason}"
    return ""
