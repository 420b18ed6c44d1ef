"""The engine's benchmarks, one after the other, and all of their figures in one file: ``make bench-engine``.

Each part measures in processes of its own and writes its figures and its section of RESULTS.md. A part whose name is
given on the command line runs alone; the figures of the others stay as they are.
"""

import sys
from pathlib import Path

from benchmarks.results import run_parts

PARTS = ("streams", "memory", "architectures")

if __name__ == "__main__":
    run_parts(Path(__file__).parent, PARTS, sys.argv[1:])
