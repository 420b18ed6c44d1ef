"""Plan and judgements from the bytes of an artefact of stage ``evaluate``."""

from safegene.errors import EmptySample
from safegene.gate.types import JudgementRow, Plan
from safegene.workspace.parsing import parse_json, parse_jsonl


def evidence_from(plan: bytes, judgements: bytes, *, where: str) -> tuple[list[JudgementRow], Plan]:
    """Judgements and plan.

    Args:
        plan: content of ``plan.json``.
        judgements: content of ``judgements.jsonl``.
        where: the folder that holds both files, for error messages.

    Raises:
        EmptySample: there is no judgement.
        FormatError: the plan or a row is malformed; names file and line.
    """
    rows = list(parse_jsonl(JudgementRow, judgements, where=f"{where}/judgements.jsonl"))
    if not rows:
        raise EmptySample(f"expected judgements, got none, in {where}/judgements.jsonl")
    return rows, parse_json(Plan, plan, where=f"{where}/plan.json")
