"""How long the demo takes, cold and unchanged, and how soon the CLI answers: ``make bench``."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results import markdown, row, write

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
    """Measure in a temporary folder; the model cache is the user's."""
    with tempfile.TemporaryDirectory() as box:
        here = Path(box)
        rows = [goal("demo, first run", timed("demo", "demo", cwd=here), 300)]
        rows.append(goal("demo, second run, nothing changed", timed("demo", "demo", cwd=here), 60))
        rows.append(goal("safegene --help", min(timed("--help", cwd=here) for _ in range(5)), 1))
        rows.append(goal("safegene status", min(timed("status", cwd=here / "demo") for _ in range(3)), 2))
        rows.append(
            goal("safegene audit verify", min(timed("audit", "verify", cwd=here / "demo") for _ in range(3)), 5)
        )
        status = json.loads(subprocess.check_output([str(SAFEGENE), "status", "--json"], cwd=here / "demo"))
    for target in status["targets"]:
        for rate in ("hrr", "asr", "over_refusal", "utility"):
            for arm in ("before", "after", "aligned"):
                value = target[rate].get(arm)
                if value is not None:
                    rows.append(row(f"{target['name']}: {rate} {arm}", round(value, 4), "", command=COMMAND))
    write("pipeline", rows)
    print(markdown(rows))


if __name__ == "__main__":
    main()
