"""What every export reads from a record, with the shapes of earlier records."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from safegene.ledger.record import PREDICATE, Record
from safegene.workspace.digest import PREFIX

ARM_WORDS = {"before": "fine-tune before the repair", "after": "repaired candidate", "aligned": "aligned model"}
RATE_WORDS = {
    "hrr": "harmful-response rate",
    "asr": "attack success rate",
    "over_refusal": "over-refusal rate",
    "utility": "utility",
    "coherence": "coherence",
    "complied": "complied rate",
}


@dataclass(frozen=True)
class DataSet:
    """A data set of a record: its name below ``data``, its digest, and what else the record says of it."""

    name: str
    digest: str
    more: Mapping[str, Any]


@dataclass(frozen=True)
class MeasuredRate:
    """A rate of a record with its 95% interval, all in 0..1."""

    name: str
    arm: str
    rate: float
    low: float
    high: float
    n: int


def mapping(value: Any) -> Mapping[str, Any]:
    """The value where it is a mapping with content; {} for ``{"not_recorded": reason}`` and everything else."""
    return value if isinstance(value, Mapping) and "not_recorded" not in value else {}


def data_sets(record: Record) -> tuple[DataSet, ...]:
    """The record's data sets, sorted by name."""
    found = []
    for name, value in sorted(mapping(record.predicate.datasets).items()):
        more = mapping(value)
        found.append(DataSet(name, str(more.get("digest", "")) if more else str(value), more))
    return tuple(item for item in found if item.digest.startswith(PREFIX))


def measured_rates(record: Record) -> tuple[MeasuredRate, ...]:
    """The record's rates that were measured, with their intervals."""
    found = []
    for name, arms in mapping(record.predicate.rates).items():
        for arm, value in mapping(arms).items():
            one = mapping(value)
            interval = one.get("interval")
            if isinstance(one.get("rate"), int | float) and isinstance(interval, list | tuple) and len(interval) == 2:
                low, high = map(float, interval)
                found.append(MeasuredRate(name, arm, float(one["rate"]), low, high, int(one.get("n", 0))))
    return tuple(found)


def hexdigest(digest: object) -> str:
    """The 64 hex digits of a digest."""
    return str(digest).removeprefix(PREFIX)


def stable_uuid(digest: str) -> str:
    """A UUID that is always the same for a digest."""
    return str(uuid5(NAMESPACE_URL, f"{PREDICATE}#{digest}"))
