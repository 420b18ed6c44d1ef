"""Remove guards one at a time, and see that the tests which meet them fail.

A guard is a ``raise`` of the package or, in the gate and the judges, a condition that decides on a value (see
`scripts.guards`). Every test that is named runs once, and the guards that it met are noted; then it
runs again in forked processes: with none of them taken out (it must stay green), and without each of them. Where no
single one turns it red, it runs without all of them, and without those that it meets then, up to `MOST_ROUNDS` times: a
second guard behind the first one is found so. A test that stays green even then proves nothing about guards: it is
listed, and the exit code is 1. Guards inside child processes count too, where these inherit the environment.

With ``--out`` each result is kept as it comes, with its commit: a run that was stopped goes on with the tests that are
not in the file. ``--publish`` writes the counts of such files into RESULTS.md.

    python -m scripts.mutate_guards [--out FILE] [--most N] [TEST ...]   (default: tests/hostile and its 25 kinds)
    python -m scripts.mutate_guards --publish FILE [FILE ...]
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from scripts.guards import ROOT, install, met_in, take_out

COMMAND = "python -m scripts.mutate_guards"
MOST_GUARDS = 8  # tried per test by default: those that were met last
MOST_ROUNDS = 5
NO_RAISE = {
    "tests/report/test_report.py::test_hostile_output_is_text_and_nothing_else": "escaping, safegene/text.py",
    "tests/hostile/test_full_disk.py::test_the_disk_of_the_workspace_is_full_at_any_write[revoke]": "the draft of "
    "write_file, safegene/workspace/atomic.py",
    "tests/hostile/test_secrets.py::test_a_record_of_an_error_holds_no_secret": "redact_text, safegene/text.py",
    "tests/hostile/test_secrets.py::test_keys_in_the_environment_are_in_no_output": "no command prints its environment",
}
"""Tests whose guard is no ``raise`` -> the guard; without it they fail, as was tried by hand."""
LIMIT_SECONDS = 120  # of CPU time
MOST_SECONDS = 300  # by the clock: a test without its guards may wait for ever
LIMIT_BYTES = 8 << 30


@dataclass
class Run:
    """A pytest plug-in that runs each test again without its guards.

    Attributes:
        tests: test -> guard -> whether the test failed without it.
        rounds: tests that fail only without several guards -> in which round.
        failed: tests that fail as they are.
        commit: what was run.
        commits: file of tests -> what was run of it.
        out: where this is kept.
        folder: for notes.
        most: guards that are tried per test, those that were met last.
    """

    tests: dict[str, dict[str, bool]] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    commit: str = ""
    commits: dict[str, str] = field(default_factory=dict)
    out: Path | None = None
    folder: Path = Path()
    most: int = MOST_GUARDS

    def read(self, path: Path) -> None:
        """Add what a file holds."""
        if path.is_file():
            kept = json.loads(path.read_bytes())
            self.tests |= kept["tests"]
            self.rounds |= kept["rounds"]
            self.failed += kept["failed"]
            self.commit = kept["commit"]
            self.commits |= {name.partition("::")[0]: self.commit for name in kept["tests"]}

    def idle(self) -> list[str]:
        """Tests that stay green whatever is taken out."""
        green = [name for name, found in self.tests.items() if found and not any(found.values())]
        return [name for name in green if name not in self.rounds and name not in NO_RAISE]

    def unseen(self) -> list[str]:
        """Tests that met no guard."""
        return [name for name, found in self.tests.items() if not found]

    def killed(self) -> dict[str, bool]:
        """Guard -> whether a test failed without it alone."""
        killed = {guard: False for found in self.tests.values() for guard in found}
        for found in self.tests.values():
            killed |= {guard: True for guard, red in found.items() if red}
        return killed

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """Run a test as it is, then without each of the guards that it met."""
        if item.nodeid in self.tests or any(name.startswith(item.nodeid) for name in self.failed):
            return True
        met = self.folder / "met"
        met.unlink(missing_ok=True)
        take_out((), met)
        outcome = _outcome(item, shown=True)
        if outcome == "failed":
            self.failed.append(item.nodeid)
        elif outcome == "passed":
            self._without_guards(item, met_in(met)[-self.most :])
        item.session._setupstate.teardown_exact(nextitem)
        if self.out:
            from safegene.workspace.atomic import write_file

            kept = {"commit": self.commit, "tests": self.tests, "rounds": self.rounds, "failed": self.failed}
            write_file(self.out, json.dumps(kept, indent=1) + "\n")
        return True

    def _without_guards(self, item: pytest.Item, met: list[str]) -> None:
        if met and self._fails_without(item)[0]:  # the control: nothing is taken out
            self.failed.append(f"{item.nodeid} (a second time)")
            return
        found = self.tests[item.nodeid] = {guard: self._fails_without(item, guard)[0] for guard in reversed(met)}
        removed, red = set(met), any(found.values())
        for number in range(2, MOST_ROUNDS + 2) if met and not red else ():
            red, more = self._fails_without(item, *removed)
            if red:
                self.rounds[item.nodeid] = number
            if red or removed.issuperset(more):
                break
            removed.update(more)
        word = f" in round {number}" if item.nodeid in self.rounds else ""
        print(f"{item.nodeid}: {sum(found.values())} of {len(met)}{word}", file=sys.__stdout__, flush=True)

    def _fails_without(self, item: pytest.Item, *guards: str) -> tuple[bool, list[str]]:
        """Whether a test fails without some guards, and which guards it met."""
        met = self.folder / "met-without"
        met.unlink(missing_ok=True)
        child = os.fork()
        if not child:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(MOST_SECONDS)
            used, code = int(sum(os.times()[:2])), 1
            resource.setrlimit(resource.RLIMIT_CPU, (used + LIMIT_SECONDS, used + LIMIT_SECONDS))
            resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
            take_out(guards, met)
            try:
                code = int(_outcome(item) == "failed")
            finally:
                os._exit(code)
        return os.waitpid(child, 0)[1] != 0, met_in(met)[-self.most :]


def _outcome(item: pytest.Item, *, shown: bool = False) -> str:
    from _pytest.runner import runtestprotocol

    # what the modules of the test set up stays; pytest reads only listchain() of the next item
    reports = runtestprotocol(item, log=False, nextitem=item.parent)  # type: ignore[arg-type]
    outcomes = {report.outcome for report in reports}
    if shown:
        print(*(report.longreprtext for report in reports if report.failed), sep="\n", end="", file=sys.__stdout__)
    return next(name for name in ("failed", "skipped", "passed") if name in outcomes)


def _named_tests() -> Iterator[str]:
    from tests.hostile.test_twenty_five import KINDS

    yield "tests/hostile"
    for _, names in KINDS.values():
        yield from (f"tests/{name}" for name in names if not name.startswith("hostile/"))


def _publish(run: Run) -> None:
    """Write the counts into RESULTS.md."""
    from benchmarks.results import header, markdown, new_figure, publish

    killed = run.killed()
    counts = {
        "tests that ran without their guards": len(run.tests),
        "guards that they met": len(killed),
        "guards without which alone a test fails": sum(killed.values()),
        "tests that fail only without several guards": len(run.rounds),
        "tests that met no guard": len(run.unseen()),
        "tests that fail as they are": len(run.failed),
        "tests that stay green whatever is taken out": len(run.idle()),
    }
    figures = [
        replace(new_figure(name, count, "", command=COMMAND), commit=run.commit) for name, count in counts.items()
    ]
    figures[-1] = replace(figures[-1], goal="0", holds=not run.idle())
    lists = {
        "No test fails without one of these guards alone": [guard for guard, red in killed.items() if not red],
        "Tests that met no guard": run.unseen(),
        "Tests that fail as they are": run.failed,
        "Tests whose guard is no `raise`": [
            f"{name}: {guard}" for name, guard in NO_RAISE.items() if name in run.tests
        ],
        "Files, each with its commit": [f"{name} {commit}" for name, commit in sorted(run.commits.items())],
    }
    text = [f"{title}: {', '.join(f'`{name}`' for name in names)}." for title, names in lists.items() if names]
    publish("guards", "Guards", header(figures[0]), "\n\n".join([markdown(figures), *text]))


def last_change(commit: str = "HEAD") -> str:
    """The last commit, up to one, that changed the package or its tests; ``-dirty`` where they differ from HEAD."""
    places = ("--", "safegene", "flows", "tests")
    found = _git("log", "-1", "--format=%h", "--abbrev=12", commit, *places).strip()
    changed = commit == "HEAD" and _git("status", "--porcelain", *places).strip()
    return f"{found}-dirty" if changed else found


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> int:
    """Run the tests, and say which of them depend on no guard, and which guards no test depends on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--most", type=int, default=MOST_GUARDS, help="guards per test, those that it met last")
    parser.add_argument("--publish", type=Path, nargs="+", default=())
    args = parser.parse_args()
    with TemporaryDirectory(prefix="safegene-guards-") as folder:
        if not args.publish:
            install(Path(folder))
        run = Run(out=args.out, commit=last_change(), folder=Path(folder), most=args.most)
        for path in args.publish or [args.out] if args.publish or args.out else ():
            run.read(path)
        if args.publish:
            _publish(run)
            return 0
        options = "-q -p no:randomly -n 0 --timeout 0 -p no:cacheprovider --no-header"
        pytest.main([*options.split(), "-m", "not slow", *(args.tests or _named_tests())], plugins=[run])
    return _report(run)


def _report(run: Run) -> int:
    killed, idle = run.killed(), run.idle()
    for title, names in (
        ("tests fail as they are", run.failed),
        ("tests stay green whatever is taken out", idle),
        ("tests fail only without several guards", list(run.rounds)),
        ("tests met no guard", run.unseen()),
        ("guards have no test that fails without them alone", [guard for guard, red in killed.items() if not red]),
    ):
        print(f"{len(names)} {title}", *names, sep="\n  ")
    print(f"{len(run.tests)} tests, {len(killed)} guards, {sum(killed.values())} with a test that fails without them")
    return int(bool(run.failed or idle or not run.tests))


if __name__ == "__main__":
    sys.exit(main())
