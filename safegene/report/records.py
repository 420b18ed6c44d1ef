"""What the report shows of the signed records: the newest one, a target's history, and what changed since what is live.

The chain is verified while it is read. A ledger that does not verify gives no history, only the reason.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from safegene.errors import SafegeneError
from safegene.gate import Rate
from safegene.ledger.chain import Ledger, open_ledger
from safegene.ledger.live import live_in, revocations
from safegene.ledger.memory import RevokedDigest
from safegene.ledger.pins import owner_of
from safegene.ledger.record import EVERY, PUBLISHING, Record
from safegene.ledger.snapshot import Reading, read_state
from safegene.report.lineage import TITLES
from safegene.report.live import LiveRelease, live_release, when
from safegene.report.state import RecordedArtefact, TargetState
from safegene.report.words import date, in_words, short
from safegene.text import percent
from safegene.workspace.layout import Workspace, cache_folder

RECORDS_READ = 1000
ROWS_SHOWN = 20
BEFORE_AFTER = ("before", "after")
RATES = {"hrr": "Harmful-response rate", "asr": "Attack success rate", "over_refusal": "Over-refusal rate"}
RATES |= {"utility": "Utility"}


@dataclass(frozen=True)
class SignedRecord:
    """A verified record, and who signed it: the owners of the keys, or the key ids where no owner is named."""

    record: Record
    signer: str

    @property
    def when(self) -> str:
        """When the attempt ended, as its run says."""
        return date(when(self.record))


@dataclass(frozen=True)
class Records:
    """The newest records of the ledger, the newest first.

    Attributes:
        newest: at most `RECORDS_READ` of them.
        problem: why there are none; "" where the ledger verifies.
        revoked: every revocation.
        elsewhere: (channel, target, what is live there) of the channels other than ``promote.channel``.
    """

    newest: tuple[SignedRecord, ...] = ()
    problem: str = ""
    revoked: tuple[RevokedDigest, ...] = ()
    elsewhere: tuple[tuple[str, str, LiveRelease], ...] = ()

    def of(self, target: str) -> list[SignedRecord]:
        """The records of a target, and those that concern every target."""
        return [one for one in self.newest if one.record.target in (target, EVERY)]


@dataclass(frozen=True)
class HistoryRow:
    """One record of a target as a row of text."""

    sequence: int
    channel: str
    when: str
    outcome: str
    tone: str
    harm: str
    live: bool
    signer: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """The candidate beside what is live.

    Attributes:
        sentence: what is compared, or why nothing is.
        rates: (rate, value of what is live, value of the candidate, difference), as text.
        changed: what has changed, as (what, digest in the record of what is live, digest now).
        same: what has not.
    """

    sentence: str
    rates: tuple[tuple[str, str, str, str], ...] = ()
    changed: tuple[tuple[str, str, str], ...] = ()
    same: tuple[str, ...] = ()


def read_records(workspace: Workspace) -> Records:
    """The newest records of the workspace's ledger, each verified."""
    try:
        ledger = open_ledger(workspace.params.promote, workspace.root, cache=cache_folder() / "records")
        owners = {key.keyid: owner_of(key) or f"key {key.keyid[:12]}" for key in ledger.keys}
        chain = islice(ledger.walk(), RECORDS_READ)
        newest = tuple(SignedRecord(one, _signer(one, owners)) for one in chain)
        reading = read_state(ledger)
        revoked = revocations(ledger, reading)
        elsewhere = _elsewhere(ledger, reading, revoked, workspace.params.promote.channel)
        return Records(newest, "", revoked, tuple(elsewhere))
    except (SafegeneError, OSError) as error:
        return Records(problem=f"the history is unknown: {error}")


def _elsewhere(
    ledger: Ledger, reading: Reading | None, revoked: Sequence[RevokedDigest], here: str
) -> Iterator[tuple[str, str, LiveRelease]]:
    """What is live on the channels other than ``here``."""
    for channel, target in sorted(reading.channels if reading else ()):
        if channel != here:
            pointer = ledger.pointer(channel, target)
            if live := live_in(ledger, reading, revoked, pointer, channel=channel, target=target):
                yield channel, target, live_release(live)


def _signer(record: Record, owners: Mapping[str, str]) -> str:
    keys = record.signers or (record.predicate.chain.key,)
    return ", ".join(dict.fromkeys(owners.get(key, f"key {key[:12]}") for key in keys))


def history_rows(target: TargetState, records: Records) -> list[HistoryRow]:
    """A target's records as rows, the newest first."""
    live = live_record(target, records)
    return [
        history_row(one, live is not None and one.record.digest == live.record.digest)
        for one in records.of(target.name)
    ]


def history_row(one: SignedRecord, live: bool = False) -> HistoryRow:
    """A record as a row; ``live`` says whether what it published is live."""
    record = one.record
    rates = (recorded_rate(record, "hrr", arm).rate for arm in BEFORE_AFTER)
    before, after = ("–" if rate is None else percent(rate) for rate in rates)
    harm = "–" if before == after == "–" else f"{before} → {after}"
    told = (record.outcome, tone(record), harm, live, one.signer, in_words(record.reason))
    return HistoryRow(record.sequence, "all channels" if record.channel == EVERY else record.channel, one.when, *told)


def tone(record: Record) -> str:
    """The class of the style sheet for a record's outcome."""
    return "pass" if record.outcome in PUBLISHING else {"fail": "fail", "error": "fail"}.get(record.outcome, "open")


def compare_with_live(target: TargetState, family: Mapping[str, RecordedArtefact], records: Records) -> Comparison:
    """What the candidate is beside what is live: its rates, and which artefacts, policy, judge and suites changed."""
    if target.live_problem or records.problem:
        return Comparison(f"Unknown: {target.live_problem or records.problem}.")
    if target.live is None:
        return Comparison("Nothing is live, so there is nothing to compare with.")
    found = live_record(target, records)
    if found is None:
        return Comparison(f"The record of release {short(target.live.release)} is not among those that were read.")
    named = f"record {found.record.sequence} of {found.when}"
    if target.candidate_is_live:
        return Comparison(f"The candidate is what is live, by {named}.")
    pairs = list(_pairs(target, family, found.record))
    changed = tuple((what, short(old), short(new) or "none") for what, old, new in pairs if old != new)
    same = tuple(what for what, old, new in pairs if old == new)
    return Comparison(f"What is live was put there by {named}.", tuple(_rates(target, found.record)), changed, same)


def live_record(target: TargetState, records: Records) -> SignedRecord | None:
    """The newest record that published what is live; None where nothing is, or where it is not among those read."""
    release = target.live.release if target.live else None
    return next((one for one in records.of(target.name) if release and one.record.release == release), None)


def _pairs(
    target: TargetState, family: Mapping[str, RecordedArtefact], record: Record
) -> Iterator[tuple[str, str | None, str | None]]:
    """(what, digest in the record, present digest)."""
    verdict, content = target.verdict, record.predicate
    for name, artefact in (*family.items(), *target.artefacts.items()):
        if name in record.artefacts and name in TITLES:
            yield TITLES[name], record.artefacts[name], artefact.digest
    if verdict:
        yield "Policy", inside(content.policy, "digest"), verdict.policy
        yield "Judge", inside(content.judge, "identity"), verdict.judge.identity
        for name, digest in sorted(verdict.suites.items()):
            yield f"Suite, {name}", inside(content.suite, "suites", name), digest


def _rates(target: TargetState, record: Record) -> Iterator[tuple[str, str, str, str]]:
    for name, title in RATES.items():
        old, new = recorded_rate(record, name, "after").rate, target.rate(name, "after").rate
        moved = "–" if old is None or new is None else f"{100 * (new - old):+.1f} pts".replace("-", "−")
        yield title, percent(old), percent(new), moved


def recorded_rate(record: Record, measure: str, arm: str) -> Rate:
    """A rate of a record with its interval; a rate of None where the record states none, or no share in 0..1."""
    stated = inside(record.predicate.rates, measure, arm)
    rate, ends, n = (inside(stated, name) for name in ("rate", "interval", "n"))
    shares = [share(end) for end in ends] if isinstance(ends, Sequence) and not isinstance(ends, str) else []
    low, high = shares if len(shares) == 2 else (None, None)
    interval = (low, high) if low is not None and high is not None else None
    return Rate(share(rate), interval, n if type(n) is int else 0)


def inside(value: Any, *names: str) -> Any:
    """The value at a path of nested mappings; None where there is none, as in records of earlier versions."""
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def share(value: Any) -> float | None:
    """The value as a share in 0..1; None when it is anything else."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and 0 <= value <= 1 else None
