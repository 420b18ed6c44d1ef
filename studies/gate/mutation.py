"""``python -m studies.gate.mutation``: flip every single comparison of gate and statistics; some test must fail.

A copy of the package with one comparison flipped is put before the real one, and the tests of gate and statistics run
against it until one fails. Survivors are printed with their line, and published. Slow (minutes to an hour), so not a
test; arguments name other files than all of them, and then nothing is published.
"""

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.results import commit, machine, publish

ROOT = Path(__file__).parents[2]
FILES = ("safegene/pipeline/stages/gate.py", "safegene/gate/*.py")
TESTS = (
    "test_stats.py",
    "test_verdict.py",
    "test_adjudication.py",
    "test_course.py",
    "test_payload.py",
    "hostile/test_gate.py",
)
FLIPS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}


def mutants(source: str) -> Iterator[tuple[int, str, str]]:
    """(line, the comparison as it stands, the whole source with it flipped)."""
    places = [
        (at, i)
        for at, node in enumerate(ast.walk(ast.parse(source)))
        if isinstance(node, ast.Compare)
        for i in range(len(node.ops))
    ]
    for at, which in places:
        tree = ast.parse(source)
        node = list(ast.walk(tree))[at]
        assert isinstance(node, ast.Compare)
        was = ast.unparse(node)
        node.ops[which] = FLIPS[type(node.ops[which])]()
        yield node.lineno, was, ast.unparse(tree)


def survives(box: Path) -> bool:
    """Whether no test fails with the package in ``box``."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS]
    environment = {**os.environ, "PYTHONPATH": str(box), "PYTHONDONTWRITEBYTECODE": "1"}
    tests = box / "tests"
    done = subprocess.run(command, cwd=tests, env=environment, capture_output=True, text=True, check=False, timeout=600)
    return done.returncode == 0


def main() -> None:
    """Every mutant of every file; exit 1 if one survives."""
    left, count = list[str](), 0
    with tempfile.TemporaryDirectory() as name:
        box = Path(name)
        for part in ("safegene", "tests", "flows"):
            shutil.copytree(ROOT / part, box / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("pyproject.toml", "params.yaml", "dvc.yaml"):
            shutil.copy(ROOT / part, box / part)
        if not survives(box):
            raise SystemExit("expected the tests to pass on the code as it is, got a failure")
        for path in (path for pattern in sys.argv[1:] or FILES for path in sorted(ROOT.glob(pattern))):
            place = box / path.relative_to(ROOT)
            source = path.read_text(encoding="utf-8")
            for line, was, mutant in mutants(source):
                place.write_text(mutant, encoding="utf-8")
                count += 1
                if survives(box):
                    left.append(f"{path.relative_to(ROOT)}:{line}: {was}")
                    print(f"survives: {left[-1]}", flush=True)
            place.write_text(source, encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: {count} flipped, {len(left)} survive so far", file=sys.stderr, flush=True)
    print(f"{count} comparisons flipped, {len(left)} survive")
    if not sys.argv[1:]:
        listed = "".join(f"\n- `{one}`" for one in left)
        text = f"{machine()}, commit {commit()}, `python -m studies.gate.mutation`\n\n"
        text += f"Every comparison in {', '.join(f'`{one}`' for one in FILES)} flipped, one at a time: {count}. "
        publish("gate-mutation", "The gate, mutated", text + f"No test fails for {len(left)} of them.{listed}")
    raise SystemExit(1 if left or not count else 0)


if __name__ == "__main__":
    main()
