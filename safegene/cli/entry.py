"""The command ``safegene``, and the process of a stage server: both before anything else is imported."""

import ctypes
import sys
from collections.abc import Iterator

from safegene.pipeline.stage_server import Server, ask


def main() -> None:
    """Run the command line: in a process of the run's stage server where there is one, else in this process."""
    if (code := ask()) is not None:
        raise SystemExit(code)
    keep_freed_memory()
    _run()


def serve() -> None:
    """Serve on the socket whose number is the argument; in a forked process, run the command that it was asked for."""
    import socket

    keep_freed_memory()
    Server(socket.socket(fileno=int(sys.argv[1])), libraries()).serve()
    _run()


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 32 MiB, 256 MiB in all; with another C library, change nothing.

    By default it returns such blocks to the system, so that each temporary tensor costs a page fault per 4 KiB.
    """
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
    try:
        adjust = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError):
        return
    adjust(mmap_threshold, 32 << 20)
    adjust(trim_threshold, 256 << 20)


def libraries() -> Iterator[None]:
    """Import what stages need that load a model, a part in each step."""
    import torch  # noqa: F401

    yield

    yield
    import transformers.modeling_utils  # noqa: F401

    yield
    import peft  # noqa: F401
    import transformers.models.auto.modeling_auto
    import transformers.models.auto.tokenization_auto  # noqa: F401

    yield
    import safegene.cli.app
    import safegene.pipeline.stages.calibrate
    import safegene.pipeline.stages.degrade
    import safegene.pipeline.stages.evaluate
    import safegene.pipeline.stages.extract
    import safegene.pipeline.stages.select  # noqa: F401


def _run() -> None:
    from safegene.cli.app import main

    main()


if __name__ == "__main__":
    serve()
