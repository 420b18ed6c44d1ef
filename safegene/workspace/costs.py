"""The CPU seconds that an artefact took to make, measured on the machine that made it.

An artefact holds no time, so that equal inputs give equal bytes. Its cost is therefore kept in ``.safegene/costs``, one
JSON file per digest, which neither Git nor DVC tracks: an artefact made on another machine has no cost here. The
seconds include loading libraries and exclude work that a cache saved. No verdict and no record depends on them.
"""

import json
from pathlib import Path

from safegene.workspace.atomic import write_optional
from safegene.workspace.digest import is_digest

FOLDER = ".safegene/costs"


def note_cost(root: Path, digest: str, stage: str, cpu_seconds: float) -> None:
    """Store the cost of the artefact with that digest; a later cost of the same digest replaces it."""
    write_optional(_path(root, digest), json.dumps({"cpu_seconds": round(cpu_seconds, 2), "stage": stage}) + "\n")


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
