"""Feed mutated input to every parser of files and answers from outside: ``make fuzz``.

A parser may return a value or raise one of its declared errors, within `LIMIT_SECONDS`. Everything else is a crash: its
input is kept in ``tests/hostile/corpus/PARSER/``, which the tests replay. Runs can be stopped at any time and go on:
the count of inputs per parser is kept in ``STATE``. Where ``atheris`` is installed, ``--atheris PARSER`` runs
libFuzzer, guided by coverage, on one parser; without it, mutations are by this file alone.

    python -m scripts.fuzz --seconds 7200 [--parsers header,record] [--state FILE]
    python -m scripts.fuzz --atheris "public keys" -max_total_time=600      (options after it are libFuzzer's)
"""

import argparse
import importlib
import json
import logging
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

from safegene.errors import SafegeneError
from safegene.workspace.atomic import write_file
from safegene.workspace.digest import digest_bytes
from scripts.fuzz_parsers import Parser, parsers

CORPUS = Path(__file__).parents[1] / "tests" / "hostile" / "corpus"
LIMIT_SECONDS = 10
MOST_BYTES = 1 << 16  # of one input
MOST_INPUTS, MOST_CPU_SECONDS = 10_000_000, 7200  # either is enough
TURN_SECONDS = 2.0  # that each parser gets in turn
PIECES = tuple(
    piece.encode()
    for piece in (
        *("{}", "[]", "null", "true", "-1", "0", "1e999", "NaN", "Infinity", "9" * 400, "1.5", '""', '"a"', "[" * 2000),
        *("\\ud800", "\\u0000", "../", "/etc/passwd", "<script>", "\x1b[31m", "\u202e", "\ufeff", "\r\n", "\n\n"),
        *(
            "sha256:" + "0" * 64,
            "https://user:pass@host/",
            "${jndi}",
            "{{ 1 }}",
            "&a [*a]",
            "!!python/object",
            ": ",
            ",",
        ),
        *("model.layers.0.mlp.up_proj.weight", "yes", "no", "unsafe\nS1", "Safety: Safe", "</end>", "=cmd()", "﷽"),
    )
) + (b"\xff", b"\xc0\x80", b"\x00", b"\xef\xbb\xbf", b"\x80")
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")


class Crash(Exception):
    """A parser did what it may not do."""


def mutate(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """The data with one to eight changes: bits, bytes, slices, numbers, known pieces, parts of another input."""
    for _ in range(chance.randint(1, 8)):
        at, end = sorted((chance.randint(0, len(data)), chance.randint(0, len(data))))
        end = min(end, at + 64) if chance.random() < 0.8 else end
        kind = chance.randrange(7)
        if kind == 0 and data:
            at = chance.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + chance.choice(PIECES) + data[end if chance.random() < 0.5 else at :]
        elif kind == 2:
            data = data[:at] + data[end:]
        elif kind == 3:
            data = data[:end] + data[at:end] * chance.choice((1, 1, 2, 30)) + data[end:]
        elif kind == 4 and (numbers := list(_NUMBER.finditer(data[:4096]))):
            found = chance.choice(numbers)
            data = data[: found.start()] + chance.choice(PIECES[:14]) + data[found.end() :]
        elif kind == 5:
            other = chance.choice(others)
            data = data[:at] + other[chance.randint(0, len(other)) :]
        else:
            data = data[:at] + chance.randbytes(chance.randint(1, 8)) + data[at:]
        data = data[:MOST_BYTES]
    return data


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `Crash` in the block once the process has used ``seconds`` of CPU time; only in the main thread."""

    def late(*_: object) -> None:
        raise Crash(f"no result within {seconds:g} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def try_one(parser: Parser, data: bytes) -> bool:
    """Whether the parser accepted the data.

    Raises:
        Crash: it raised something that it does not declare, or an error whose message is no usable sentence.
    """
    try:
        parser.read(data)
    except parser.errors as error:
        message = str(error)
        if isinstance(error, SafegeneError) and ("\x1b" in message or not message.strip()):
            raise Crash(f"{type(error).__name__} with the message {message[:200]!r}") from error
        return False
    except Crash:
        raise
    except BaseException as error:
        raise Crash(f"{type(error).__name__}: {str(error)[:300]}") from error
    return True


def keep(parser: Parser, data: bytes) -> Path:
    """Keep an input in the corpus."""
    path = CORPUS / parser.name / digest_bytes(data).removeprefix("sha256:")[:16]
    write_file(path, data)
    return path


def corpus(name: str) -> list[bytes]:
    """The kept inputs of a parser."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*")) if path.is_file()]


class State:
    """The counts of all runs so far, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inputs: dict[str, int] = {}
        self.crashes: dict[str, int] = {}
        self.cpu_seconds = 0.0
        self.peak_mebibytes = 0
        if path.is_file():
            vars(self).update(json.loads(path.read_bytes()), path=path)

    def save(self) -> None:
        """Write the file."""
        content = {"inputs": self.inputs, "crashes": self.crashes, "cpu_seconds": round(self.cpu_seconds, 1)}
        content["total"] = sum(self.inputs.values())
        self.peak_mebibytes = max(self.peak_mebibytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
        content["peak_mebibytes"] = self.peak_mebibytes
        write_file(self.path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def turn(parser: Parser, state: State, seconds: float, chance: random.Random) -> None:
    """Mutate and try for some seconds; accepted inputs that are new in size join the pool."""
    pool = [*parser.seeds, *corpus(parser.name)]
    until, begin = time.monotonic() + seconds, time.process_time()
    count = 0
    while time.monotonic() < until:
        data = mutate(chance.choice(pool), pool, chance)
        count += 1
        try:
            with time_limit(LIMIT_SECONDS):
                accepted = try_one(parser, data)
            if accepted and len(pool) < 200:
                pool.append(data)
        except Crash as crash:
            state.crashes[parser.name] = state.crashes.get(parser.name, 0) + 1
            print(f"{parser.name}: {crash}; kept as {keep(parser, data)}", file=sys.stderr)
    state.inputs[parser.name] = state.inputs.get(parser.name, 0) + count
    state.cpu_seconds += time.process_time() - begin


def publish_counts(state: State) -> None:
    """Write the counts into RESULTS.md."""
    from benchmarks.results import header, markdown, new_figure, publish

    new, total = partial(new_figure, command="python -m scripts.fuzz"), sum(state.inputs.values())
    done, crashes = total >= MOST_INPUTS or state.cpu_seconds >= MOST_CPU_SECONDS, sum(state.crashes.values())
    figures = [
        new(f"thousands of inputs of {len(state.inputs)} parsers", total // 1000, "", goal="10,000", holds=done),
        new("CPU time", round(state.cpu_seconds), "s"),
        new("crashes and hangs", crashes, "", goal="0", holds=not crashes),
        new("peak memory", state.peak_mebibytes, "MiB"),
    ]
    fewest = sorted(state.inputs, key=state.inputs.__getitem__)[:5]
    few = "Counted over several runs, of this commit and earlier ones. Fewest inputs: " + ", ".join(
        f"{name} {state.inputs[name]:,}" for name in fewest
    )
    publish("fuzzing", "Fuzzing", header(figures[0]), f"{markdown(figures)}\n\n{few}.")


def with_atheris(parser: Parser, arguments: Sequence[str]) -> None:
    """Run libFuzzer on one parser; it ends at the first crash, whose input it keeps."""
    atheris: Any = importlib.import_module("atheris")  # a tool of maintainers, not in the lock

    folder = CORPUS / parser.name
    folder.mkdir(parents=True, exist_ok=True)
    pool = Path(tempfile.mkdtemp(prefix="safegene-fuzz-"))
    for number, data in enumerate(parser.seeds):
        (pool / str(number)).write_bytes(data)
    for function in _functions():  # the whole process, torch among it, would take many minutes
        atheris.instrument_func(function)
    limits = [f"-timeout={LIMIT_SECONDS}", "-rss_limit_mb=2048", f"-max_len={MOST_BYTES}"]
    atheris.Setup(["fuzz", *limits, f"-artifact_prefix={folder}/", *arguments, str(pool), str(folder)], _tried(parser))
    atheris.Fuzz()


def _functions() -> Iterator[FunctionType]:
    """The functions and methods of the package that are imported."""
    for name, module in sorted(sys.modules.items()):
        owners = [module, *(each for each in vars(module).values() if isinstance(each, type))] if module else []
        for value in (value for owner in owners for value in vars(owner).values()):
            if name.startswith("safegene.") and isinstance(value, FunctionType) and value.__module__ == name:
                yield value


def _tried(parser: Parser) -> Callable[[bytes], Any]:
    return lambda data: try_one(parser, data) and None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until the time is over; exit code 1 if a parser crashed."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=7200.0)
    options.add_argument("--parsers", default="", help="names, separated by commas (default: all)")
    options.add_argument("--state", type=Path, default=Path(".fuzz.json"))
    options.add_argument("--seed", type=int, default=None)
    options.add_argument("--publish", action="store_true", help="write the counts of the state into RESULTS.md")
    options.add_argument("--atheris", default="", metavar="PARSER")
    given, rest = options.parse_known_args(arguments)
    logging.disable()
    if given.publish:
        publish_counts(State(given.state))
        return 0
    with tempfile.TemporaryDirectory(prefix="safegene-fuzz-") as folder:
        os.environ["SAFEGENE_KEYS"] = str(Path(folder) / "keys")  # for the seals of a resume log
        known = parsers(Path(folder))
        if given.atheris:
            with_atheris(known[given.atheris], rest)
            return 0
        chosen = [known[name] for name in given.parsers.split(",") if name] or list(known.values())
        state, until = State(given.state), time.monotonic() + given.seconds
        chance = random.Random(given.seed if given.seed is not None else time.time_ns())
        while (left := until - time.monotonic()) > 0:
            for parser in chosen:
                turn(parser, state, min(TURN_SECONDS, max(0.05, left / len(chosen))), chance)
            state.save()
    print(
        f"{sum(state.inputs.values()):,} inputs, {sum(state.crashes.values())} crashes, {state.cpu_seconds:.0f} CPU s"
    )
    return 1 if state.crashes else 0


if __name__ == "__main__":
    raise SystemExit(main())
