"""Questions to a chain that change nothing: what is live, what was live, what a record rests on, what is revoked.

A record rests on every digest that its artefacts and fields name. A revocation names one digest; every record that
rests on it is revoked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from safegene.errors import LedgerError
from safegene.ledger.chain import Ledger, Pointer, Stored, channel_key, require_published
from safegene.ledger.record import Record
from safegene.ledger.trust import signed_in_time, why_untrusted
from safegene.workspace.digest import canonical_json, is_digest


@dataclass(frozen=True)
class LiveRecord:
    """What is live for a target on a channel.

    Attributes:
        pointer: the channel pointer.
        record: the record that it names.
        chain: all records, from the newest to the first.
        revoked: why the record must not be relied on; empty where nothing that it rests on is revoked.
    """

    pointer: Stored[Pointer]
    record: Record
    chain: tuple[Record, ...]
    revoked: str = ""

    @property
    def release(self) -> str:
        """Digest of the release that is live."""
        return self.pointer.content.release

    @property
    def was_live(self) -> tuple[Record, ...]:
        """The live record and every record that was live before it, newest first."""
        by_digest, records = self._by_digest, [self.record]
        while (earlier := records[-1].replaces) and earlier in by_digest:
            records.append(by_digest[earlier])
        return tuple(records)

    @property
    def predecessor(self) -> Record | None:
        """The promotion whose release was live before the live release was first promoted; None for none."""
        earlier = self._by_digest.get(self._promotion(self.record).replaces or "")
        return self._promotion(earlier) if earlier else None

    @property
    def rolled_back(self) -> frozenset[str]:
        """Digests of the candidates that were rolled back since the last promotion."""
        steps = list(zip(self.was_live, self.was_live[1:], strict=False))
        rollbacks = takewhile(lambda step: step[0].outcome == "rollback", steps)
        return frozenset(earlier.artefacts.get("candidate", "") for _, earlier in rollbacks)

    @property
    def newer_rollback(self) -> Record | None:
        """A rollback that is newer than the pointer: it was interrupted, or somebody set the pointer back."""
        here = (self.record.channel, self.record.target)
        superseded = superseded_records(self.chain)
        return next(
            (
                record
                for record in self.chain
                if record.outcome == "rollback"
                and record.sequence > self.record.sequence
                and (record.channel, record.target) == here
                and record.digest not in superseded
            ),
            None,
        )

    @property
    def _by_digest(self) -> Mapping[str, Record]:
        return {record.digest: record for record in self.chain}

    def _promotion(self, record: Record) -> Record:
        by_digest = self._by_digest
        while record.outcome == "rollback" and record.restores in by_digest:
            record = by_digest[str(record.restores)]
        return record


def live_record(ledger: Ledger, target: str, channel: str) -> LiveRecord | None:
    """What is live for a target on a channel; None when nothing is. The whole chain is verified, in both cases.

    Raises:
        LedgerError: the chain is broken, or the pointer is wrong (see `follow_pointer`).
    """
    pointer = ledger.pointer(channel, target)
    chain = tuple(ledger.walk())
    if pointer is None:
        return None
    return follow_pointer(ledger, chain, revocations(ledger), pointer, channel=channel, target=target)


def follow_pointer(
    ledger: Ledger,
    chain: tuple[Record, ...],
    revoked: Sequence[Record],
    pointer: Stored[Pointer],
    *,
    channel: str,
    target: str,
) -> LiveRecord:
    """What a channel pointer puts live.

    Args:
        ledger: names the place in messages.
        chain: all records, verified, from the newest to the first.
        revoked: the revocations, from `revocations`.
        pointer: the channel pointer.
        channel: the channel's name.
        target: the target's name.

    Raises:
        LedgerError: the pointer names no record on the chain, a record of something else, or a superseded record.
    """
    where, named = ledger.where(channel_key(channel, target)), pointer.content.record
    record = next((record for record in chain if record.digest == named), None)
    if record is None:
        raise LedgerError(f"expected a pointer to a record on the chain, got one to {named}, in {where}")
    require_published(pointer.content, record, channel=channel, target=target, where=where)
    if named in superseded_records(chain):
        raise LedgerError(
            f"expected a pointer to a record that went live, got record {record.sequence}, which a later record says "
            f"was superseded, in {where}"
        )
    why = why_revoked(revoked, digests_of_record(record)) or why_untrusted(ledger, record, revoked)
    return LiveRecord(pointer, record, chain, why)


def superseded_records(chain: Sequence[Record]) -> frozenset[str]:
    """Digests of the records that another promotion forestalled, as records of outcome ``superseded`` say."""
    return frozenset(str(record.replaces) for record in chain if record.outcome == "superseded")


def revocations(ledger: Ledger) -> tuple[Record, ...]:
    """All signed revocations in the store, newest first, on the chain or not.

    A revocation holds although its writer stopped before linking it, or somebody set the tip back. Records that cannot
    be read are skipped here; `safegene.ledger.audit` reports them.
    """
    revoked = []
    for digest in ledger.records():
        try:
            record = ledger.read(digest)
        except LedgerError:
            continue
        if record.outcome == "revocation" and signed_in_time(record, ledger.keys):
            revoked.append(record)
    return tuple(sorted(revoked, key=lambda record: -record.sequence))


def find_record(name: str, records: Sequence[Record]) -> Record | None:
    """The record with that sequence number, or with a digest (its own or its release's) that starts with ``name``.

    At least 8 digits of a digest are needed; None where no record fits.
    """
    if name.isdecimal() and len(name) < 8:
        return next((record for record in records if record.sequence == int(name)), None)
    digits = name.removeprefix("sha256:")
    named = (r for r in records if any(f":{digits}" in digest for digest in (r.digest, str(r.release))))
    return next(named, None) if len(digits) >= 8 else None


def digests_named(content: Mapping[str, Any]) -> frozenset[str]:
    """Every digest that occurs anywhere in plain JSON values."""
    return frozenset(text for text in canonical_json(dict(content)).decode().split('"') if is_digest(text))


def digests_of_record(record: Record) -> frozenset[str]:
    """Every digest that a record rests on: its release, and all digests in its artefacts and fields.

    The fields ``chain`` and ``channel`` are left out: they name neighbouring records only.
    """
    return digests_named(record.predicate.model_dump(exclude={"chain", "channel"}))


def why_revoked(revoked: Sequence[Record], used: frozenset[str]) -> str:
    """Why one of these digests is revoked, as one sentence; empty where none is."""
    for record in revoked:
        if record.outcome == "revocation" and record.revokes in used:
            return f"record {record.sequence} revoked {record.revokes}: {record.reason}"
    return ""
