"""``safegene audit pack``: the evidence that one record holds, mapped to clauses of laws and standards.

The folder has ``index.html`` (in the style of the report: no script, no request), ``evidence.json`` with the same
content, ``records/`` with the signed records of the target and the revocations, ``objects/`` with what these name by
its digest, and the public keys. What is not recorded is listed first, with the reason. The pack says what is recorded;
it never says that a law or standard is complied with.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safegene.errors import LedgerError, ParamsError
from safegene.ledger.chain import Ledger, open_ledger, stored_apart
from safegene.ledger.pointers import object_key, record_key
from safegene.ledger.record import EVERY, FIELDS, Record
from safegene.ledger.trace import history, leaves, named_record
from safegene.report.clauses import INSTRUMENTS, Clause, Instrument
from safegene.report.page import render_template
from safegene.workspace.atomic import draft_folder, write_file
from safegene.workspace.digest import canonical_json
from safegene.workspace.layout import Workspace

STATEMENT = (
    "Evidence mapped to clauses: what one signed record says, and what it does not. It is no statement that a law or "
    "a standard is complied with, and no legal advice."
)
SHOWN_VALUES = 60


@dataclass(frozen=True)
class MissingField:
    """A field, or a part of one, that is not recorded: its place, the recorded reason, the clauses that it concerns."""

    place: str
    reason: str
    clauses: tuple[str, ...]


def write_pack(workspace: Workspace, name: str, out: Path, *, channel: str | None = None) -> Path:
    """Write the evidence of a record into a new folder, and return the page.

    Args:
        workspace: the pipeline repository.
        name: a target that is live, or a record: its number, or at least 8 digits of its digest.
        out: a new or empty folder.
        channel: of a target; by default that of ``params.yaml``.

    Raises:
        ParamsError: ``out`` holds something.
        LedgerError: there is no such record, or the chain is broken.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ParamsError(f"expected a new or empty folder for the evidence, got {out}, which holds something")
    params = workspace.params.promote
    ledger = open_ledger(params, workspace.root)
    record = named_record(ledger, name, channel or params.channel)
    if record.target == EVERY:
        raise LedgerError(f"expected a record of a target, got record {record.sequence} of outcome {record.outcome!r}")
    evidence = pack_evidence(ledger, record)
    with draft_folder(out) as draft:
        for one in ledger.walk():
            if one.target in (record.target, EVERY):
                keys = (record_key(one.digest), *map(object_key, stored_apart(one)))
                for key in keys:
                    write_file(draft / key, ledger.store.get(key)[0])
        write_file(draft / "ledger.pub", (workspace.root / params.public_key).read_bytes())
        write_file(draft / "evidence.json", canonical_json(evidence) + b"\n")
        write_file(draft / "index.html", _page(evidence))
    return out / "index.html"


def pack_evidence(ledger: Ledger, record: Record) -> dict[str, Any]:
    """The content of ``evidence.json``: the record, its clauses, what is missing, every attempt on the target."""
    fields = record.predicate.model_dump(mode="json", include=set(FIELDS))
    absent = {place: reason for field in FIELDS for place, reason in _not_recorded(fields[field], field)}
    attempts = history(ledger, record.target)
    return {
        "schema": "safegene/evidence/v1",
        "statement": STATEMENT,
        "target": record.target,
        "channel": record.channel,
        "record": record.digest,
        "sequence": record.sequence,
        "outcome": record.outcome,
        "reason": record.reason,
        "release": record.release,
        "live": any(one.live and one.record == record.digest for one in attempts),
        "artefacts": dict(record.artefacts),
        "missing": [vars(item) for item in _missing(absent)],
        "instruments": [_instrument(instrument, absent) for instrument in INSTRUMENTS],
        "fields": {name: {"holds": FIELDS[name], "content": fields[name]} for name in FIELDS},
        "history": [vars(one) for one in attempts],
        "keys": [key.keyid for key in ledger.keys],
    }


def _not_recorded(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """(place, reason) of every ``{"not_recorded": reason}`` in a field; an empty field is not recorded either."""
    if isinstance(value, Mapping):
        if "not_recorded" in value:
            yield place, str(value["not_recorded"])
            return
        for key, item in value.items():
            yield from _not_recorded(item, f"{place}.{key}")
    if value in ({}, [], "", None) and "." not in place:
        yield place, "the record has nothing here"


def _missing(absent: Mapping[str, str]) -> tuple[MissingField, ...]:
    return tuple(MissingField(place, reason, tuple(_concerned(place))) for place, reason in absent.items())


def _concerned(place: str) -> Iterator[str]:
    field = place.partition(".")[0]
    for instrument in INSTRUMENTS:
        numbers = [clause.number for clause in instrument.clauses if field in clause.fields]
        if numbers:
            yield f"{instrument.short}: {', '.join(dict.fromkeys(numbers))}"


def _instrument(instrument: Instrument, absent: Mapping[str, str]) -> dict[str, Any]:
    clauses = [_clause(clause, absent) for clause in instrument.clauses]
    return {"short": instrument.short, "title": instrument.title, "note": instrument.note, "clauses": clauses}


def _clause(clause: Clause, absent: Mapping[str, str]) -> dict[str, Any]:
    """A clause with the fields that are recorded, and the places in them that are not."""
    recorded = [name for name in clause.fields if name not in absent]
    gaps = [place for place in absent if place.partition(".")[0] in clause.fields]
    state = "not recorded" if not recorded else "partly recorded" if gaps else "recorded"
    return {
        "number": clause.number,
        "subject": clause.subject,
        "state": state,
        "recorded": recorded,
        "not_recorded": gaps,
        "outside": clause.outside,
    }


def _page(evidence: Mapping[str, Any]) -> str:
    fields = [
        {"name": name, "holds": field["holds"], "values": _shown(field["content"])}
        for name, field in evidence["fields"].items()
    ]
    return render_template(
        "pack.html.j2",
        evidence=evidence,
        fields=fields,
        tones={"recorded": "pass", "partly recorded": "open", "not recorded": "fail"},
    )


def _shown(content: Any) -> Sequence[tuple[str, str]]:
    """(place, value) of what a field holds; a long field is cut, and says how much is left out."""
    values = [(place or "value", _text(value)) for place, value in leaves(content)]
    left = len(values) - SHOWN_VALUES
    return values if left <= 0 else [*values[:SHOWN_VALUES], ("...", f"{left} more values, in evidence.json")]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else canonical_json(value).decode()
