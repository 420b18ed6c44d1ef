"""Loads a ``tokenizer.json`` with bounds on time and memory; run as a script, without safegene.

A few lines of it can ask for any amount of either: forty replacements of ``a`` by ``aa`` make a terabyte of one letter.
So a stranger's file is tried here first. The exit code is 0 where it ends within the bounds, also with an error of its
own, which the loading process then reports.
"""

import resource
import sys
from contextlib import suppress

BYTES = 3 << 30  # of address space; a vocabulary of 250,000 words takes less than one GiB
SECONDS = 30  # of CPU time; such a vocabulary takes about two
PROBE = "a b A B 1 2 . \u00e9 \u4e2d \U0001f600 <s>"


def main(path: str, most_bytes: int, seconds: int) -> int:
    """Load the file and encode a few characters of different kinds."""
    with suppress(ValueError, OSError):  # not every system has these bounds
        resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(path)
        tokenizer.decode(tokenizer.encode(PROBE).ids)
    except MemoryError:
        return 1
    except BaseException:  # noqa: S110 - the library's PanicException is no Exception
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:4])))
