"""``python -m studies.gate.mutation [FILE ...]``: invert each comparison of the gate's code; some test must fail.

Each comparison in turn is inverted in a copy of the package, and the gate's tests run against the copy until one
fails. A mutant for which no test fails survives: it is printed with its line and published. With arguments only these
files are mutated, and nothing is published. The study takes minutes to an hour, so it is not a test.
"""

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.results import measured_at, publish

ROOT = Path(__file__).parents[2]
FILES = ("safegene/pipeline/stages/gate.py", "safegene/gate/*.py")
TESTS = ("tests/gate", "tests/hostile/test_gate.py")
COMMAND = "python -m studies.gate.mutation"
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
    """(line, the original comparison, the source with that comparison inverted) for every comparison."""
    positions = [
        (at, i)
        for at, node in enumerate(ast.walk(ast.parse(source)))
        if isinstance(node, ast.Compare)
        for i in range(len(node.ops))
    ]
    for at, which in positions:
        tree = ast.parse(source)
        node = list(ast.walk(tree))[at]
        assert isinstance(node, ast.Compare)
        original = ast.unparse(node)
        node.ops[which] = FLIPS[type(node.ops[which])]()
        yield node.lineno, original, ast.unparse(tree)


def survives(box: Path) -> bool:
    """Whether every test passes with the package in ``box``."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS]
    environment = {**os.environ, "PYTHONPATH": str(box), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=box, env=environment, capture_output=True, text=True, check=False, timeout=600)
    return done.returncode == 0


def main() -> None:
    """Run every mutant of every file; exit 1 if one survives."""
    survivors, count = list[str](), 0
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
            for line, original, mutant in mutants(source):
                place.write_text(mutant, encoding="utf-8")
                count += 1
                if survives(box):
                    survivors.append(f"{path.relative_to(ROOT)}:{line}: {original}")
                    print(f"survives: {survivors[-1]}", flush=True)
            place.write_text(source, encoding="utf-8")
            print(
                f"{path.relative_to(ROOT)}: {count} flipped, {len(survivors)} survive so far",
                file=sys.stderr,
                flush=True,
            )
    print(f"{count} comparisons flipped, {len(survivors)} survive")
    if not sys.argv[1:]:
        listed = "".join(f"\n- `{survivor}`" for survivor in survivors)
        text = f"Every comparison in {', '.join(f'`{pattern}`' for pattern in FILES)} flipped, one at a time: {count}. "
        text += f"No test fails for {len(survivors)} of them.{listed}"
        publish("gate-mutation", "The gate, mutated", measured_at(COMMAND), text)
    raise SystemExit(1 if survivors or not count else 0)


if __name__ == "__main__":
    main()
