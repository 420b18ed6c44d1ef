"""What the report shows of the signed records: the newest one, a target's history, and what changed since what is live.

The chain is verified while it is read. A ledger that does not verify gives no history, only the reason.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from safegene.errors import SafegeneError
from safegene.ledger.chain import open_ledger
from safegene.ledger.pins import owner_of
from safegene.ledger.record import EVERY, PUBLISHING, Record
from safegene.report.lineage import TITLES
from safegene.report.live import when
from safegene.report.state import RecordedArtefact, TargetState
from safegene.report.words import date, short
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
    """

    newest: tuple[SignedRecord, ...] = ()
    problem: str = ""

    def of(self, target: str) -> list[SignedRecord]:
        """The records of a target, and those that concern every target."""
        return [one for one in self.newest if one.record.target in (target, EVERY)]


@dataclass(frozen=True)
class HistoryRow:
    """One record of a target as a row of text."""

    sequence: int
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
        return Records(tuple(SignedRecord(one, _signer(one, owners)) for one in islice(ledger.walk(), RECORDS_READ)))
    except (SafegeneError, OSError) as error:
        return Records(problem=f"the history is unknown: {error}")


def _signer(record: Record, owners: Mapping[str, str]) -> str:
    keys = record.signers or (record.predicate.chain.key,)
    return ", ".join(dict.fromkeys(owners.get(key, f"key {key[:12]}") for key in keys))


def history_rows(target: TargetState, records: Records) -> list[HistoryRow]:
    """A target's records as rows, the newest first."""
    live = _live_record(target, records)
    return [_row(one, live is not None and one.record.digest == live.record.digest) for one in records.of(target.name)]


def _row(one: SignedRecord, live: bool) -> HistoryRow:
    record = one.record
    tone = "pass" if record.outcome in PUBLISHING else {"fail": "fail", "error": "fail"}.get(record.outcome, "open")
    before, after = (percent(rate) if (rate := _rate(record, "hrr", arm)) is not None else "–" for arm in BEFORE_AFTER)
    harm = "–" if before == after == "–" else f"{before} → {after}"
    return HistoryRow(record.sequence, one.when, record.outcome, tone, harm, live, one.signer, record.reason)


def compare_with_live(target: TargetState, family: Mapping[str, RecordedArtefact], records: Records) -> Comparison:
    """What the candidate is beside what is live: its rates, and which artefacts, policy, judge and suites changed."""
    if target.live_problem or records.problem:
        return Comparison(f"Unknown: {target.live_problem or records.problem}.")
    if target.live is None:
        return Comparison("Nothing is live, so there is nothing to compare with.")
    found = _live_record(target, records)
    if found is None:
        return Comparison(f"The record of release {short(target.live.release)} is not among those that were read.")
    named = f"record {found.record.sequence} of {found.when}"
    if target.candidate_is_live:
        return Comparison(f"The candidate is what is live, by {named}.")
    pairs = list(_pairs(target, family, found.record))
    changed = tuple((what, short(old), short(new) or "none") for what, old, new in pairs if old != new)
    same = tuple(what for what, old, new in pairs if old == new)
    return Comparison(f"What is live was put there by {named}.", tuple(_rates(target, found.record)), changed, same)


def _live_record(target: TargetState, records: Records) -> SignedRecord | None:
    """The newest record that published what is live."""
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
        yield "Policy", _inside(content.policy, "digest"), verdict.policy
        yield "Judge", _inside(content.judge, "identity"), verdict.judge.identity
        for name, digest in sorted(verdict.suites.items()):
            yield f"Suite, {name}", _inside(content.suite, "suites", name), digest


def _rates(target: TargetState, record: Record) -> Iterator[tuple[str, str, str, str]]:
    for name, title in RATES.items():
        old, new = _rate(record, name, "after"), target.rate(name, "after").rate
        moved = "–" if old is None or new is None else f"{100 * (new - old):+.1f} pts".replace("-", "−")
        yield title, percent(old), percent(new), moved


def _rate(record: Record, measure: str, arm: str) -> float | None:
    value = _inside(record.predicate.rates, measure, arm, "rate")
    return float(value) if isinstance(value, int | float) else None


def _inside(value: Any, *names: str) -> Any:
    """The value at a path of nested mappings; None where there is none."""
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
