"""The gate stage itself; what must never pass stands in tests/hostile/test_gate.py."""

import subprocess
import sys

import pytest

from safegene.gate import Rate, recovery


def test_the_gate_imports_no_model_library() -> None:
    code = (
        "import sys, safegene.pipeline.stages.gate\n"
        "print([m for m in ('torch', 'transformers', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("before", "after", "aligned", "expected"),
    [
        (0.6, 0.1, 0.1, 1.0),
        (0.6, 0.35, 0.1, 0.5),
        (0.6, 0.0, 0.1, 1.2),
        (0.6, 0.7, 0.1, -0.2),
        (0.14, 0.1, 0.1, None),
        (None, 0.1, 0.1, None),
        (0.6, None, 0.1, None),
    ],
)
def test_recovery(before: float | None, after: float | None, aligned: float | None, expected: float | None) -> None:
    hrr = {name: Rate(rate, None) for name, rate in (("before", before), ("after", after), ("aligned", aligned))}
    assert recovery(hrr) == (None if expected is None else pytest.approx(expected))
