"""What the stages of a workspace took: CPU seconds as this machine measured them, tokens as the manifests state them.

A stage whose cost was measured on another machine, or never, is None, and never counts as zero.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from safegene.report.records import Records, inside
from safegene.report.state import RecordedArtefact, TargetState
from safegene.report.words import STAGES
from safegene.workspace.costs import cost_of
from safegene.workspace.manifest import Manifest

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class StageSpent:
    """What making artefacts of one stage took.

    Attributes:
        stage: the stage.
        cpu_seconds: CPU time of those that were measured here; None for none.
        tokens: tokens that the manifests, or the signed records, state; None where none states any.
        replies: replies that were generated or judged; None where none are stated.
        measured: how many of ``made`` have a measured cost.
        made: how many artefacts there are.
    """

    stage: str
    cpu_seconds: float | None
    tokens: int | None
    replies: int | None
    measured: int
    made: int


def spent(root: Path, artefacts: Mapping[str, RecordedArtefact], generated: int | None = None) -> list[StageSpent]:
    """What each artefact took; ``generated`` are the tokens of the replies in the judgements, where known."""
    rows = []
    for name, artefact in artefacts.items():
        if artefact.manifest is None:
            continue
        seconds, replies = cost_of(root, artefact.digest), artefact.manifest.facts.get("replies")
        tokens = generated if name == "judgements" else _tokens(artefact.manifest)
        known = replies if type(replies) is int else None
        rows.append(StageSpent(STAGES[name], seconds, tokens, known, int(seconds is not None), 1))
    return rows


def generated_tokens(target: TargetState, records: Records) -> int | None:
    """Tokens of the replies in the present judgements, as a signed record of them states; None where none does."""
    digest = target.artefacts["judgements"].digest
    for one in records.of(target.name):
        part = inside(one.record.predicate.compute, "evaluation")
        tokens = inside(part, "tokens", "generated")
        if digest and inside(part, "artefact") == digest and type(tokens) is int:
            return tokens
    return None


def total(rows: Iterable[StageSpent]) -> list[StageSpent]:
    """The sum for each stage, in the order of the stages' first row."""
    by_stage: dict[str, list[StageSpent]] = {}
    for row in rows:
        by_stage.setdefault(row.stage, []).append(row)
    return [
        StageSpent(
            stage,
            _sum([row.cpu_seconds for row in some]),
            _sum([row.tokens for row in some]),
            _sum([row.replies for row in some]),
            sum(row.measured for row in some),
            sum(row.made for row in some),
        )
        for stage, some in by_stage.items()
    ]


def seconds_of(rows: Iterable[StageSpent]) -> float | None:
    """CPU seconds of all rows that were measured; None where none was."""
    return _sum([row.cpu_seconds for row in rows])


def _tokens(manifest: Manifest) -> int | None:
    stated = manifest.facts.get("tokens")
    counts = [count for count in stated.values() if type(count) is int] if isinstance(stated, Mapping) else []
    return sum(counts) if counts else None


def _sum(values: Sequence[Number | None]) -> Number | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
