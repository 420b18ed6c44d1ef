"""``python -m studies.recovery.tune [METHOD ...]``: choose the baselines' options on the validation split.

The option with the most cells inside the limits is chosen; between equal ones that with the smallest sum of harm, lost
utility and gained over-refusal, over four targets of two seeds. The test split is not read. The result is
``chosen.json``, which is committed.
"""

import json
import sys
from typing import Any

from studies.recovery.cells import Job
from studies.recovery.pool import run
from studies.recovery.protocol import CHOSEN, GRIDS, baseline

SEEDS, TARGETS = (0, 1), ("topic", "group", "strong", "update3")


def score(cells: list[dict[str, Any]]) -> tuple[float, float]:
    """(cells inside the limits, minus the mean of harm, utility lost and over-refusal gained)."""
    cost = 0.0
    for one in cells:
        before, after = one["rates"]["before"], one["rates"]["after"]
        cost += after["harm"] + max(0.0, before["utility"] - after["utility"])
        cost += max(0.0, after["over_refusal"] - before["over_refusal"])
    return sum(not one["lacks"] for one in cells), -round(cost / len(cells), 4)


def main() -> None:
    """Try every option of every grid, or of the methods named; the others keep their choice."""
    grids = {name: GRIDS[name] for name in sys.argv[1:] or GRIDS}
    jobs: dict[tuple[str, int], list[Job]] = {}
    for name, (dense, method, grid) in grids.items():
        for number, options in enumerate(grid):
            tried = baseline(f"{name}#{number}", dense, method=method, **options)
            jobs[name, number] = [Job(seed, target, tried, "validation") for seed in SEEDS for target in TARGETS]
    found = iter(run([job for some in jobs.values() for job in some]))
    scores = {key: score([next(found) for _ in some]) for key, some in jobs.items()}
    kept = json.loads(CHOSEN.read_text()) if CHOSEN.is_file() else {"options": {}, "tried": {}}
    options, tried = kept["options"], kept["tried"]
    for name, (_, _, grid) in grids.items():
        best = max(range(len(grid)), key=lambda number: (scores[name, number], -number))
        options[name] = grid[best]
        tried[name] = [{"options": one, "score": list(scores[name, at])} for at, one in enumerate(grid)]
    CHOSEN.write_text(json.dumps({"options": options, "tried": tried}, indent=1) + "\n")
    print(json.dumps(options, indent=1))


if __name__ == "__main__":
    main()
