"""The figures of operations, one part after the other, all in one file: ``make bench-operations``.

A part is a module beside this one: it measures, and writes its figures and its section of RESULTS.md. A part whose name
is given on the command line runs alone; the figures of the others stay as they are.
"""

import sys
from pathlib import Path

from benchmarks.results import run_parts

PARTS = ("pages", "soak")

if __name__ == "__main__":
    run_parts(Path(__file__).parent, PARTS, sys.argv[1:])
