"""Remove guards one at a time, and see that the tests which meet them fail.

A guard is a ``raise`` of the package. Every test that is named runs once, and the guards that it met are noted; then it
runs again in forked processes: with none of them taken out (it must stay green), and without each of them. Where no
single one turns it red, it runs without all of them, and without those that it meets then, up to `MOST_ROUNDS` times: a
second guard behind the first one is found so. A test that stays green even then proves nothing about guards: it is
listed, and the exit code is 1. Guards inside child processes are not seen.

    python -m scripts.mutate_guards [--out FILE] [TEST ...]      (default: tests/hostile and the tests of its 25 kinds)
"""

import argparse
import ast
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, ModuleType

import pytest

ROOT = Path(__file__).parents[1]
MOST_GUARDS = 8  # tried per test: those that were met last
MOST_ROUNDS = 5
LIMIT_SECONDS = 120
LIMIT_BYTES = 8 << 30


@dataclass
class Guards:
    """Which guards were met, and which are taken out.

    Attributes:
        met: ``path:line`` of every guard met since the last reset, in order, each once.
        removed: the guards that let everything pass.
    """

    met: dict[str, None] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()

    def __call__(self, place: str) -> bool:
        """Whether the ``raise`` at a place is carried out."""
        self.met.pop(place, None)
        self.met[place] = None
        return place not in self.removed


GUARDS = Guards()


class _Instrument(ast.NodeTransformer):
    """``raise X`` becomes ``if GUARDS(place): raise X``; a bare ``raise`` stays."""

    def __init__(self, path: str) -> None:
        self.path = path

    def visit_Raise(self, node: ast.Raise) -> ast.AST:  # noqa: N802 - the name that ast calls
        if node.exc is None:
            return node
        asked = ast.parse(f"__import__('sys').guards('{self.path}:{node.lineno}')", mode="eval").body
        return ast.copy_location(ast.If(asked, [node], []), node)


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType | None:
        path = Path(self.get_filename(fullname))
        tree = _Instrument(path.relative_to(ROOT).as_posix()).visit(ast.parse(path.read_bytes(), str(path)))
        code: CodeType = compile(ast.fix_missing_locations(tree), str(path), "exec", dont_inherit=True)
        return code


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in ("safegene", "flows"):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path or [str(ROOT)], target)
        if spec and isinstance(spec.loader, importlib.machinery.SourceFileLoader) and spec.origin:
            spec.loader = _Loader(fullname, spec.origin)
        return spec


@dataclass
class Run:
    """A pytest plug-in that runs each test again without its guards.

    Attributes:
        tests: test -> guard -> whether the test failed without it.
        rounds: tests that fail only without several guards -> in which round.
        failed: tests that fail as they are.
    """

    tests: dict[str, dict[str, bool]] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """Run a test as it is, then without each of the guards that it met."""
        GUARDS.met.clear()
        outcome = _outcome(item)
        if outcome == "failed":
            self.failed.append(item.nodeid)
        elif outcome == "passed":
            self._without_guards(item, list(GUARDS.met)[-MOST_GUARDS:])
        item.session._setupstate.teardown_exact(nextitem)
        return True

    def _without_guards(self, item: pytest.Item, met: list[str]) -> None:
        if met and _fails_without(item)[0]:  # the control: nothing is taken out
            self.failed.append(f"{item.nodeid} (a second time)")
            return
        found = self.tests[item.nodeid] = {guard: _fails_without(item, guard)[0] for guard in reversed(met)}
        removed, red = set(met), any(found.values())
        for number in range(2, MOST_ROUNDS + 2) if met and not red else ():
            red, more = _fails_without(item, *removed)
            if red:
                self.rounds[item.nodeid] = number
            if red or removed.issuperset(more):
                break
            removed.update(more)
        word = f" in round {number}" if item.nodeid in self.rounds else ""
        print(f"{item.nodeid}: {sum(found.values())} of {len(met)}{word}", file=sys.__stdout__, flush=True)


def _outcome(item: pytest.Item) -> str:
    from _pytest.runner import runtestprotocol

    # what the modules of the test set up stays; pytest reads only listchain() of the next item
    reports = runtestprotocol(item, log=False, nextitem=item.parent)  # type: ignore[arg-type]
    outcomes = {report.outcome for report in reports}
    return next(name for name in ("failed", "skipped", "passed") if name in outcomes)


def _fails_without(item: pytest.Item, *guards: str) -> tuple[bool, list[str]]:
    """Whether a test fails without some guards, and which guards it met."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LIMIT_SECONDS)
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
        GUARDS.removed, code = frozenset(guards), 1
        GUARDS.met.clear()
        try:
            code = int(_outcome(item) == "failed")
            os.write(writer, "\n".join(list(GUARDS.met)[-MOST_GUARDS:]).encode())
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as met:
        return os.waitpid(child, 0)[1] != 0, met.read().split()


def _named_tests() -> Iterator[str]:
    from tests.hostile.test_twenty_five import KINDS

    yield "tests/hostile"
    for _, names in KINDS.values():
        yield from (f"tests/{name}" for name in names if not name.startswith("hostile/"))


def main() -> int:
    """Run the tests, and say which of them depend on no guard, and which guards no test depends on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tests", nargs="*")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    sys.guards = GUARDS  # type: ignore[attr-defined]
    sys.meta_path.insert(0, _Finder())
    run = Run()
    options = "-q -p no:randomly -n 0 --timeout 0 -p no:cacheprovider --no-header"
    pytest.main([*options.split(), "-m", "not slow", *(args.tests or _named_tests())], plugins=[run])
    killed = {guard: False for found in run.tests.values() for guard in found}
    for found in run.tests.values():
        killed |= {guard: True for guard, red in found.items() if red}
    idle = [name for name, found in run.tests.items() if found and not any(found.values()) and name not in run.rounds]
    unseen = [name for name, found in run.tests.items() if not found]
    if args.out:
        args.out.write_text(json.dumps(vars(run), indent=1) + "\n", encoding="utf-8")
    for title, names in (
        ("tests fail as they are", run.failed),
        ("tests stay green whatever is taken out", idle),
        ("tests fail only without several guards", list(run.rounds)),
        ("tests met no guard of this process", unseen),
        ("guards have no test that fails without them alone", [guard for guard, red in killed.items() if not red]),
    ):
        print(f"{len(names)} {title}", *names, sep="\n  ")
    print(f"{len(run.tests)} tests, {len(killed)} guards, {sum(killed.values())} with a test that fails without them")
    return int(bool(run.failed or idle or not run.tests))


if __name__ == "__main__":
    sys.exit(main())
