"""Blast radius: every record, and every live target, that one digest, data set or key touched.

A record is touched by what its artefacts and fields name, and by the keys that signed or approved it. The fields
``chain`` and ``channel`` name neighbouring records only and do not count.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safegene.errors import LedgerError
from safegene.ledger.chain import Ledger
from safegene.ledger.live import LiveRecord, live_in, revocations, why_revoked
from safegene.ledger.memory import RevokedDigest
from safegene.ledger.pointers import channel_key
from safegene.ledger.record import Record
from safegene.ledger.snapshot import Reading, read_state
from safegene.workspace.digest import PREFIX, is_digest

SHORTEST = 8


@dataclass(frozen=True)
class TouchedRecord:
    """A record that names what was asked for.

    Attributes:
        record: the record.
        places: where in the record it is named, such as ``vector.digest``; ``signature`` or ``approval`` for a key.
    """

    record: Record
    places: tuple[str, ...]


@dataclass(frozen=True)
class BlastRadius:
    """What a digest, a data set or a key touched.

    Attributes:
        names: the digests and key ids that were looked for.
        touched: every record that names one of them, newest first.
        live: those of them that are live now.
        unread: why a channel could not be read, for each such channel; it may hold a touched release.
        revoked: why one of the names is revoked already; empty for none.
    """

    names: tuple[str, ...]
    touched: tuple[TouchedRecord, ...]
    live: tuple[LiveRecord, ...]
    unread: tuple[str, ...]
    revoked: str

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values, with the number, outcome, target and channel of each record."""
        live = {one.record.digest for one in self.live}
        records = [
            {
                "sequence": one.record.sequence,
                "outcome": one.record.outcome,
                "target": one.record.target,
                "channel": one.record.channel,
                "live": one.record.digest in live,
                "places": list(one.places),
                "record": one.record.digest,
            }
            for one in self.touched
        ]
        return {
            "names": list(self.names),
            "live": [{"target": one.record.target, "channel": one.record.channel} for one in self.live],
            "records": records,
            "unread": list(self.unread),
            "revoked": self.revoked,
        }


def blast_radius(ledger: Ledger, name: str) -> BlastRadius:
    """Every record that something touched; the chain is verified and read once.

    Args:
        ledger: the ledger.
        name: a digest, or at least 8 of its digits; a key id, or at least 8 of its digits; a data set as records
            name it, such as ``prompts/gate.jsonl``, in every version that was ever recorded.

    Raises:
        LedgerError: nothing on record has that name, or several things have; the chain is broken.
    """
    reading, chain = read_state(ledger), tuple(ledger.walk())
    revoked = revocations(ledger, reading)
    places = {record.digest: tuple(named_places(record)) for record in chain}
    names = _resolve(name, places)
    touched = [
        TouchedRecord(record, tuple(place for place, text in places[record.digest] if text in names))
        for record in chain
        if any(text in names for _, text in places[record.digest])
    ]
    live, unread = live_records(ledger, reading, revoked)
    digests = {one.record.digest for one in touched}
    return BlastRadius(
        names,
        tuple(touched),
        tuple(one for one in live if one.record.digest in digests),
        unread,
        why_revoked(revoked, frozenset(names) | {PREFIX + name for name in names}),
    )


def live_records(
    ledger: Ledger, reading: Reading | None, revoked: Sequence[RevokedDigest]
) -> tuple[tuple[LiveRecord, ...], tuple[str, ...]]:
    """What is live on every channel, and why a channel could not be read, for each such channel."""
    live, unread = list[LiveRecord](), list[str]()
    for channel, target in sorted({*(reading.channels if reading else ()), *ledger.channels()}):
        try:
            pointer = ledger.pointer(channel, target)
            if one := live_in(ledger, reading, revoked, pointer, channel=channel, target=target):
                live.append(one)
        except LedgerError as error:
            unread.append(f"{ledger.where(channel_key(channel, target))}: {error.message}")
    return tuple(live), tuple(unread)


def named_places(record: Record) -> Iterator[tuple[str, str]]:
    """(place in the record, digest or key id or data set that it names), of everything that can be asked for."""
    content = record.predicate.model_dump(mode="json", exclude={"chain", "channel"})
    yield from _digests(content, "")
    yield from (("signature", keyid) for keyid in record.signers)
    yield from (("approval", keyid) for keyid in _approving(content["approval"]))
    yield from ((f"datasets.{name}", name) for name in record.predicate.datasets if name != "not_recorded")


def _approving(approval: Any) -> Iterator[str]:
    """Ids of the keys whose signatures approved a promotion."""
    envelope = approval.get("envelope") if isinstance(approval, Mapping) else None
    signatures = envelope.get("signatures") if isinstance(envelope, Mapping) else None
    for signature in signatures if isinstance(signatures, list) else ():
        if isinstance(signature, Mapping):
            yield str(signature.get("keyid", ""))


def _digests(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            below = f"{place}.{key}" if place else str(key)
            if is_digest(key):
                yield below, str(key)
            yield from _digests(item, below)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _digests(item, f"{place}[{number}]")
    elif is_digest(value):
        yield place, str(value)


def _resolve(name: str, places: Mapping[str, Sequence[tuple[str, str]]]) -> tuple[str, ...]:
    """The digests and ids that a name stands for: itself, or the one thing on record that starts with it."""
    known = {text for record in places.values() for _, text in record}
    digits = name.removeprefix(PREFIX)
    if name in known:  # a key is named by its id where it signed, and as a digest where it published a vector
        return tuple(sorted({name, digits, PREFIX + digits} & known))
    if len(digits) >= SHORTEST and set(digits) <= set("0123456789abcdef"):
        found = sorted(text for text in known if text.removeprefix(PREFIX).startswith(digits))
        if len({text.removeprefix(PREFIX) for text in found}) == 1:
            return tuple(found)
        if found:
            raise LedgerError(f"expected the start of one digest, got that of {len(found)}: {', '.join(found)}")
    raise LedgerError(
        f"expected a digest, a key id (or {SHORTEST} digits of one) or a data set that a record names, got {name!r}",
        remedy="find digests with `safegene audit show TARGET` and `safegene audit reuse`",
    )
