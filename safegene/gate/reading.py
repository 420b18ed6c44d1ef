"""Plans and judgements from plain JSON values, strictly: a key that nobody reads would be a claim nobody checks."""

from dataclasses import fields
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from safegene.errors import EmptySample, FormatError
from safegene.gate.types import Judgement, Plan
from safegene.workspace.digest import canonical_json, strict_json

# Absent from what was written before there were adjudicators; without them nothing is claimed.
LATER = {"again", "adjudicator", "adjudication", "canaries", "attempt"}
# Of a row of judgements, for people and for the audit of stopped replies; no verdict rests on them.
SHOWN = ("kind", "text", "reply", "finished", "stopped", "stops_at", "tokens")

T = TypeVar("T")
_JUDGEMENT = TypeAdapter(Judgement)
_PLAN = TypeAdapter(Plan)


def plan_from(raw: Any, *, where: str) -> Plan:
    """The plan that ``plan.json`` holds.

    Raises:
        FormatError: it has another form; ``where`` names its file.
    """
    return _parsed(_PLAN, raw, {field.name for field in fields(Plan)}, "a plan", where)


def judgement_from(raw: Any, *, where: str) -> Judgement:
    """The judgement in a row of ``judgements.jsonl``, without what is in it for people.

    Raises:
        FormatError: it has another form; ``where`` names file and line.
    """
    kept = {key: value for key, value in raw.items() if key not in SHOWN} if isinstance(raw, dict) else raw
    return _parsed(_JUDGEMENT, kept, {field.name for field in fields(Judgement)}, "a judgement", where)


def evidence_from(plan: bytes, judgements: bytes, *, where: str) -> tuple[list[Judgement], Plan]:
    """Judgements and plan from the bytes of ``judgements.jsonl`` and ``plan.json`` of the folder ``where``.

    Raises:
        EmptySample: there is no judgement.
        FormatError: the plan or a row has another form; names file and line.
    """
    place, rows = f"{where}/plan.json", []
    planned = plan_from(strict_json(plan, where=place), where=place)
    for number, line in enumerate(judgements.split(b"\n"), start=1):
        place = f"{where}/judgements.jsonl, line {number}"
        if line.strip():
            rows.append(judgement_from(strict_json(line, where=place), where=place))
    if not rows:
        raise EmptySample(f"expected judgements, got none, in {where}/judgements.jsonl")
    return rows, planned


def _parsed(adapter: TypeAdapter[T], raw: Any, keys: set[str], what: str, where: str) -> T:
    if not isinstance(raw, dict) or not keys - LATER <= set(raw) <= keys:
        raise FormatError(f"expected {what} with the keys {sorted(keys)}, got another form, in {where}")
    try:
        return adapter.validate_json(canonical_json(raw), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise FormatError(f"expected {what}, got {at}: {first['msg']}, in {where}") from None
