"""How long the demo takes, first and unchanged, and how fast the commands answer: ``make bench``."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import (
    Figure,
    header,
    markdown,
    new_figure,
    publish,
    target_figures,
    targets_table,
    write,
)

COMMAND = "make bench"
SAFEGENE = Path(sys.executable).parent / "safegene"


def seconds(*command: str, cwd: Path) -> tuple[float, float]:
    """Wall seconds of a safegene command that must succeed, and CPU seconds of all of its processes."""
    start = time.monotonic()
    process = subprocess.Popen([str(SAFEGENE), *command], cwd=cwd, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, [*command])
    return time.monotonic() - start, used.ru_utime + used.ru_stime


def wall_seconds(*command: str, cwd: Path) -> float:
    """Wall seconds of a safegene command that must succeed."""
    return seconds(*command, cwd=cwd)[0]


def below(name: str, value: float, limit: float) -> Figure:
    """A figure in seconds, whose goal is an upper bound."""
    return new_figure(name, round(value, 2), "s", command=COMMAND, goal=f"< {limit:g} s", holds=value < limit)


def main() -> None:
    """Measure in a temporary folder, with an empty model cache, and publish the section."""
    with tempfile.TemporaryDirectory() as box:
        here = Path(box)
        demo = here / "demo"
        os.environ |= {f"SAFEGENE_{name.upper()}": str(here / name) for name in ("cache", "keys", "state", "remotes")}
        first, again = (seconds("demo", "demo", cwd=here) for _ in range(2))
        figures = [
            below("demo, first run", first[0], 120),
            below("demo, first run: CPU", first[1], 200),
            below("demo, second run, nothing changed", again[0], 8),
            below("demo, second run: CPU", again[1], 16),
            below("safegene --help", min(wall_seconds("--help", cwd=here) for _ in range(5)), 1),
            below("safegene status", min(wall_seconds("status", cwd=demo) for _ in range(3)), 2),
            below("safegene audit verify", min(wall_seconds("audit", "verify", cwd=demo) for _ in range(3)), 5),
        ]
        status = json.loads(subprocess.check_output([str(SAFEGENE), "status", "--json"], cwd=demo))
    targets = status["targets"]
    halved = sum(bool(t["live"]) and t["hrr"]["after"] <= t["hrr"]["before"] / 2 for t in targets)
    name = "targets live with HRR at least halved"
    figures.append(new_figure(name, halved, "", command=COMMAND, goal=">= 2", holds=halved >= 2))
    text = f"""The first run begins with an empty model cache, so its time includes training the four fine-tunes.

{markdown(figures)}

The demo's targets, test split, seed 0:

{targets_table(targets)}"""
    write(Path(__file__).with_name("results.json"), figures + target_figures(targets, COMMAND))
    publish("pipeline", "The demo: tiny family, seed 0", header(figures[0]), text)
    print(text)


if __name__ == "__main__":
    main()
