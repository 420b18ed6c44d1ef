"""What making an artefact cost: CPU seconds, measured where it was made, kept beside the workspace and never digested.

An artefact holds no clock, so that the same inputs give the same bytes. Its cost therefore lies in ``.safegene/costs``,
one small JSON file per digest, which neither Git nor DVC carries: an artefact made elsewhere has a cost of "not
measured". Loading
libraries counts; what a cache already held does not. An estimate, not evidence: no verdict and no record depends on it.
"""

import json
import os
from pathlib import Path

from safegene.workspace.digest import is_digest

FOLDER = ".safegene/costs"


def note_cost(root: Path, digest: str, stage: str, cpu_seconds: float) -> None:
    """Remember what the artefact of that digest cost to make; a later making of the same replaces it."""
    path = _path(root, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps({"cpu_seconds": round(cpu_seconds, 2), "stage": stage}) + "\n", encoding="utf-8")
    draft.replace(path)


def cost_of(root: Path, digest: str | None) -> float | None:
    """CPU seconds that the artefact of that digest cost to make; None where that was not measured."""
    if not is_digest(digest):
        return None
    try:
        found = json.loads(_path(root, str(digest)).read_text(encoding="utf-8"))["cpu_seconds"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(found) if isinstance(found, (int, float)) and found >= 0 else None


def _path(root: Path, digest: str) -> Path:
    return root / FOLDER / f"{digest.removeprefix('sha256:')}.json"
