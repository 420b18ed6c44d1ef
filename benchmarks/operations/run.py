"""The figures of operations, one part after the other, all in one file: ``make bench-operations``.

A part is a module beside this one: it measures, and writes its figures and its section of RESULTS.md. A part whose name
is given on the command line runs alone; the figures of the others stay as they are.
"""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.results import Figure, write

PARTS = ("pages",)
HERE = Path(__file__).parent


def figures() -> list[Figure]:
    """Every figure that a part has written."""
    files = [HERE / f"{part}.json" for part in PARTS]
    return [Figure(**value) for file in files if file.is_file() for value in json.loads(file.read_text())]


def main(chosen: list[str]) -> None:
    """Run the parts that are named, or all, and gather their figures.

    Raises:
        SystemExit: a part failed, or there is none of that name.
    """
    if unknown := sorted(set(chosen) - set(PARTS)):
        raise SystemExit(f"expected some of {', '.join(PARTS)}, got {unknown[0]}")
    for part in chosen or PARTS:
        subprocess.run([sys.executable, "-m", f"benchmarks.operations.{part}"], check=True)
    write(HERE / "results.json", figures())


if __name__ == "__main__":
    main(sys.argv[1:])
