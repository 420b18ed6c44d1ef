"""The CPU seconds that an artefact took to make, measured on the machine that made it.

An artefact holds no time, so that equal inputs give equal bytes. Its cost is therefore kept in ``.safegene/costs``, one
JSON file per digest, which neither Git nor DVC tracks: an artefact made on another machine has no cost here. The
seconds include loading libraries and exclude work that a cache saved. No verdict and no record depends on them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safegene.workspace.atomic import write_optional
from safegene.workspace.digest import is_digest

FOLDER = ".safegene/costs"


@dataclass(frozen=True)
class StageCost:
    """What making one artefact took.

    Attributes:
        cpu_seconds: CPU time.
        seconds: time on the clock; None in notes of earlier versions.
        work: tokens or replies that it counted, see `work_of`; None where it counts nothing.
    """

    cpu_seconds: float
    seconds: float | None = None
    work: float | None = None


def work_of(facts: Mapping[str, Any]) -> float | None:
    """The size of a stage's work as its manifest's facts state it: tokens, or replies; None for neither."""
    tokens = facts.get("tokens")
    if isinstance(tokens, Mapping):
        return float(sum(count for count in tokens.values() if isinstance(count, int)))
    replies = facts.get("replies")
    return float(replies) if isinstance(replies, int) else None


def note_cost(
    root: Path,
    digest: str,
    stage: str,
    cpu_seconds: float,
    *,
    seconds: float | None = None,
    work: float | None = None,
) -> None:
    """Store the cost of the artefact with that digest; a later cost of the same digest replaces it."""
    note = {"cpu_seconds": round(cpu_seconds, 2), "stage": stage}
    note |= {"seconds": round(seconds, 2)} if seconds is not None else {}
    note |= {"work": work} if work is not None else {}
    write_optional(_path(root, digest), json.dumps(note) + "\n")


def last_costs(root: Path) -> dict[str, StageCost]:
    """Stage, as DVC names it -> the cost of the artefact that it made last on this machine."""
    found: dict[str, tuple[int, StageCost]] = {}
    for path in (root / FOLDER).glob("*.json"):
        try:
            note, made = json.loads(path.read_text(encoding="utf-8")), path.stat().st_mtime_ns
            cost = StageCost(float(note["cpu_seconds"]), _number(note.get("seconds")), _number(note.get("work")))
            stage = str(note["stage"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if stage not in found or made > found[stage][0]:
            found[stage] = (made, cost)
    return {stage: cost for stage, (_, cost) in found.items()}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and value >= 0 else None


def cost_of(root: Path, digest: str | None) -> float | None:
    """The CPU seconds of the artefact with that digest; None where they were not measured."""
    if not is_digest(digest):
        return None
    try:
        seconds = json.loads(_path(root, str(digest)).read_text(encoding="utf-8"))["cpu_seconds"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(seconds) if isinstance(seconds, (int, float)) and seconds >= 0 else None


def _path(root: Path, digest: str) -> Path:
    return root / FOLDER / f"{digest.removeprefix('sha256:')}.json"
