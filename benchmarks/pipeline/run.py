"""How long the demo takes, cold and unchanged, and how soon the CLI answers: ``make bench``."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results import markdown, publish, row, target_rows, targets_table, write

COMMAND = "make bench"
SAFEGENE = Path(sys.executable).parent / "safegene"


def timed(*command: str, cwd: Path) -> float:
    """Wall seconds of a command that must succeed."""
    start = time.monotonic()
    subprocess.run([str(SAFEGENE), *command], cwd=cwd, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def goal(name: str, seconds: float, most: float) -> dict[str, Any]:
    """A row whose goal is a bound on wall time."""
    return row(name, round(seconds, 2), "s", command=COMMAND, goal=f"< {most:g} s", holds=seconds < most)


def main() -> None:
    """Measure in a temporary folder, from an empty model cache."""
    with tempfile.TemporaryDirectory() as box:
        here = Path(box)
        os.environ["SAFEGENE_CACHE"] = str(here / "cache")
        rows = [goal("demo, first run", timed("demo", "demo", cwd=here), 300)]
        rows.append(goal("demo, second run, nothing changed", timed("demo", "demo", cwd=here), 60))
        rows.append(goal("safegene --help", min(timed("--help", cwd=here) for _ in range(5)), 1))
        rows.append(goal("safegene status", min(timed("status", cwd=here / "demo") for _ in range(3)), 2))
        rows.append(
            goal("safegene audit verify", min(timed("audit", "verify", cwd=here / "demo") for _ in range(3)), 5)
        )
        status = json.loads(subprocess.check_output([str(SAFEGENE), "status", "--json"], cwd=here / "demo"))
    targets = status["targets"]
    halved = [t for t in targets if t["live"] and t["hrr"]["after"] <= t["hrr"]["before"] / 2]
    rows.append(
        row(
            "targets live with HRR at least halved",
            len(halved),
            "",
            command=COMMAND,
            goal=">= 2",
            holds=len(halved) >= 2,
        )
    )
    where = f"{rows[0]['machine']}, commit {rows[0]['commit']}, `{COMMAND}`"
    note = "The first run begins with an empty model cache: it trains the four fine-tunes too."
    text = (
        f"{where}\n\n{note}\n\n{markdown(rows)}\n\nThe demo's targets, test split, seed 0:\n\n{targets_table(targets)}"
    )
    write("pipeline", rows + target_rows(targets, COMMAND))
    publish("pipeline", "The demo: tiny family, seed 0", text)
    print(text)


if __name__ == "__main__":
    main()
