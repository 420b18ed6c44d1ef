"""What is live, what was, what a record rests on, and what was revoked: questions to a chain that change nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from safegene.errors import LedgerError
from safegene.ledger.chain import Ledger, Pointer, channel_key, require_published
from safegene.ledger.record import Record
from safegene.workspace.digest import canonical_json, is_digest


@dataclass(frozen=True)
class LiveRecord:
    """What is live.

    Attributes:
        pointer: the channel's pointer.
        record: the record that it names.
        chain: every record, from the newest to the first.
        revoked: why it may not be relied on; empty where nothing that it rests on is revoked.
    """

    pointer: Pointer
    record: Record
    chain: tuple[Record, ...]
    revoked: str = ""

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
    def rolled_back(self) -> frozenset[str]:
        """Candidates that the uninterrupted run of rollbacks up to now took away."""
        steps = list(zip(self.before, self.before[1:], strict=False))
        run = takewhile(lambda step: step[0].outcome == "rollback", steps)
        return frozenset(earlier.artefacts.get("candidate", "") for _, earlier in run)

    @property
    def set_back(self) -> Record | None:
        """A rollback that is newer than the pointer: it was interrupted, or the pointer was set back behind it."""
        mine = (self.record.channel, self.record.target)
        beaten = beaten_records(self.chain)
        return next(
            (
                record
                for record in self.chain
                if record.outcome == "rollback"
                and record.sequence > self.record.sequence
                and (record.channel, record.target) == mine
                and record.digest not in beaten
            ),
            None,
        )

    @property
    def _known(self) -> Mapping[str, Record]:
        return {record.digest: record for record in self.chain}

    def _promotion(self, record: Record) -> Record:
        known = self._known
        while record.outcome == "rollback" and record.restores in known:
            record = known[str(record.restores)]
        return record


def live_record(ledger: Ledger, target: str, channel: str) -> LiveRecord | None:
    """What is live for a target on a channel; None when nothing is.

    Raises:
        LedgerError: the chain is broken; the pointer names no record on it, one of something else, or one that lost.
    """
    pointer = ledger.pointer(channel, target)
    chain = tuple(ledger.walk())  # also where nothing is live: that is believed of a sound chain only
    if pointer is None:
        return None
    return live_channels(ledger, chain, revocations(ledger), pointer, channel=channel, target=target)


def live_channels(
    ledger: Ledger,
    chain: tuple[Record, ...],
    revoked: Sequence[Record],
    pointer: Pointer,
    *,
    channel: str,
    target: str,
) -> LiveRecord:
    """As `live`, for a chain and revocations that were read already."""
    where = ledger.where(channel_key(channel, target))
    found = next((record for record in chain if record.digest == pointer.record), None)
    if found is None:
        raise LedgerError(f"expected a pointer to a record on the chain, got one to {pointer.record}, in {where}")
    require_published(pointer, found, channel=channel, target=target, where=where)
    if found.digest in beaten_records(chain):
        raise LedgerError(
            f"expected a pointer to a record that went live, got {found.sequence}, which lost, in {where}"
        )
    return LiveRecord(pointer, found, chain, revocation(revoked, records_resting_on(found)))


def beaten_records(chain: Sequence[Record]) -> frozenset[str]:
    """Digests of the records that lost the swap of their channel's pointer, and say so by ``superseded``."""
    return frozenset(str(record.replaces) for record in chain if record.outcome == "superseded")


def revocations(ledger: Ledger) -> tuple[Record, ...]:
    """Every signed revocation in the store, newest first.

    Off the chain too: a revocation whose writer stopped, or behind which the tip was set back, still holds. A record
    that cannot be read is for `safegene.ledger.audit` to report.
    """
    found = []
    for digest in ledger.records():
        try:
            record = ledger.read(digest)
        except LedgerError:
            continue
        if record.outcome == "revocation":
            found.append(record)
    return tuple(sorted(found, key=lambda record: -record.sequence))


def find_record(name: str, records: Sequence[Record]) -> Record | None:
    """The record that a sequence names, or at least 8 digits of its own or its release's digest."""
    if name.isdecimal() and len(name) < 8:
        return next((record for record in records if record.sequence == int(name)), None)
    digits = name.removeprefix("sha256:")
    named = (r for r in records if any(f":{digits}" in digest for digest in (r.digest, str(r.release))))
    return next(named, None) if len(digits) >= 8 else None


def digests_named(content: Mapping[str, Any]) -> frozenset[str]:
    """Every digest that stands anywhere in some plain JSON values."""
    return frozenset(text for text in canonical_json(dict(content)).decode().split('"') if is_digest(text))


def records_resting_on(record: Record) -> frozenset[str]:
    """Every digest that a record's release rests on: the release, and all that its artefacts and fields name.

    Not those that only place it in the ledger: the record before it, and what it replaced.
    """
    content = {name: value for name, value in record.predicate.items() if name not in ("chain", "channel")}
    return digests_named(content)


def revocation(revoked: Sequence[Record], used: frozenset[str]) -> str:
    """Why one of these digests is revoked; empty if none is."""
    for record in revoked:
        if record.outcome == "revocation" and record.revokes in used:
            return f"record {record.sequence} revoked {record.revokes}: {record.reason}"
    return ""
