"""The command ``safegene``, and the process of a stage server: both before anything else is imported."""

import sys

from safegene.pipeline.stage_server import Server, ask


def main() -> None:
    """Run the command line: in a process of the run's stage server where there is one, else in this process."""
    if (code := ask()) is not None:
        raise SystemExit(code)
    _run()


def serve() -> None:
    """Serve on the socket whose number is the argument; in a forked process, run the command that it was asked for."""
    import socket

    Server(socket.socket(fileno=int(sys.argv[1]))).serve()
    _run()


def _run() -> None:
    from safegene.cli.app import main

    main()


if __name__ == "__main__":
    serve()
