"""Remove guards one at a time, and see that the tests which meet them fail.

A guard is a ``raise`` of the package. Every test that is named runs once, and the guards that it met are noted; then it
runs again in forked processes: with none of them taken out (it must stay green), and without each of them. A test that
stays green whichever guard is taken out proves nothing about them: it is listed, and the exit code is 1. Guards inside
child processes are not seen.

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
LIMIT_SECONDS = 120
LIMIT_BYTES = 8 << 30


@dataclass
class Guards:
    """Which guards were met, and which one is taken out.

    Attributes:
        met: ``path:line`` of every guard met since the last reset, in order, each once.
        removed: the guard that lets everything pass.
    """

    met: dict[str, None] = field(default_factory=dict)
    removed: str = ""

    def __call__(self, place: str) -> bool:
        """Whether the ``raise`` at a place is carried out."""
        self.met.pop(place, None)
        self.met[place] = None
        return place != self.removed


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
        failed: tests that fail as they are.
    """

    tests: dict[str, dict[str, bool]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """Run a test as it is, then without each of the guards that it met."""
        GUARDS.met.clear()
        outcome = _outcome(item)
        if outcome == "failed":
            self.failed.append(item.nodeid)
        elif outcome == "passed":
            met = list(GUARDS.met)[-MOST_GUARDS:]
            if met and _fails_without(item, ""):  # the control: nothing is taken out
                self.failed.append(f"{item.nodeid} (a second time)")
                met = []
            self.tests[item.nodeid] = {guard: _fails_without(item, guard) for guard in reversed(met)}
            red = sum(self.tests[item.nodeid].values())
            print(f"{item.nodeid}: fails without {red} of {len(met)} guards", file=sys.__stdout__, flush=True)
        item.session._setupstate.teardown_exact(nextitem)
        return True


def _outcome(item: pytest.Item) -> str:
    from _pytest.runner import runtestprotocol

    # what the modules of the test set up stays; pytest reads only listchain() of the next item
    reports = runtestprotocol(item, log=False, nextitem=item.parent)  # type: ignore[arg-type]
    outcomes = {report.outcome for report in reports}
    return next(name for name in ("failed", "skipped", "passed") if name in outcomes)


def _fails_without(item: pytest.Item, guard: str) -> bool:
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LIMIT_SECONDS)
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
        GUARDS.removed, code = guard, 1
        try:
            code = int(_outcome(item) == "failed")
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] != 0


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
    options = [
        "-q",
        "-p",
        "no:randomly",
        "-n",
        "0",
        "--timeout",
        "0",
        "-p",
        "no:cacheprovider",
        "--no-header",
        "-m",
        "not slow",
    ]
    pytest.main([*options, *(args.tests or _named_tests())], plugins=[run])
    guards = dict[str, list[str]]()
    for test, found in run.tests.items():
        for guard, red in found.items():
            guards.setdefault(guard, []).extend([test] if red else [])
    idle = sorted(test for test, found in run.tests.items() if found and not any(found.values()))
    unseen = sorted(test for test, found in run.tests.items() if not found)
    alone = sorted(guard for guard, tests in guards.items() if not tests)
    if args.out:
        args.out.write_text(json.dumps({"tests": run.tests, "failed": run.failed}, indent=1) + "\n", encoding="utf-8")
    for title, names in (("fail as they are", run.failed), ("fail without no guard", idle), ("met no guard", unseen)):
        print(f"{len(names)} tests {title}:", *names, sep="\n  ")
    print(
        f"{len(guards) - len(alone)} of {len(guards)} guards have a test that fails without them; not:",
        *alone,
        sep="\n  ",
    )
    return int(bool(run.failed or idle or not run.tests))


if __name__ == "__main__":
    sys.exit(main())
