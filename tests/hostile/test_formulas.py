"""A spreadsheet runs a cell that begins with ``=``, ``+``, ``-``, ``@``, a tab or a return: no table of ours has one.

Tables hold numbers, words of ours, and names from outside: of matrices, targets and tasks.
"""

import csv
import json
import re
from pathlib import Path

import pytest

from safegene.checkpoints.header import check_name
from safegene.errors import FormatError, ParamsError, UnsafeCheckpoint
from safegene.gate import Rate, VerdictFile
from safegene.ledger.bundles import LIMITS
from safegene.pipeline.stages import gate as gate_stage
from safegene.pipeline.stages.compress import KeptMatrix, spectrum_table
from safegene.repair.coefficients_file import direction_table
from safegene.repair.selection import score_table
from safegene.vectors.vector import VectorHeader
from safegene.workspace.params import load_targets
from safegene.workspace.parsing import parse
from tests.factories.runs import Sample

FORMULAS = ("=1+1", "+1+1", "-1+cmd|' /C calc'!A0", "@SUM(1)", "\t=1+1", "\r=1+1", '=HYPERLINK("http://x")')
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def formulas(text: str) -> list[str]:
    """Cells that a spreadsheet would run."""
    cells = [cell for row in csv.reader(text.splitlines()) for cell in row]
    return [cell for cell in cells if cell[:1] in ("=", "+", "-", "@", "\t", "\r") and not NUMBER.fullmatch(cell)]


def test_the_check_finds_formulas() -> None:
    assert formulas("a,=1+1\n-2,-1e-5\n+cmd,@x\n") == ["=1+1", "+cmd", "@x"]


@pytest.mark.parametrize("name", FORMULAS)
def test_a_name_from_outside_cannot_be_a_formula(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsafeCheckpoint, match="expected tensor names"):
        check_name(name, Path("model.safetensors"))
    digest = "sha256:" + "0" * 64
    header = {"schema": "safegene/vector/v1", "aligned": digest, "degraded": [digest], "architecture": digest}
    entry = {"shape": [2, 2], "rank": 1, "energy": 1.0}
    with pytest.raises(FormatError, match="matrices"):
        parse(VectorHeader, {**header, "dtype": "float32", "matrices": {name: entry}, "skipped": {}}, where="x")
    for target, task in ((name, "topic"), ("topic", name)):
        targets = {target: {"source": "tiny://x", "task": task, "fingerprint": "f"}}
        (tmp_path / "targets.yaml").write_text(json.dumps({"targets": targets}))
        with pytest.raises(ParamsError, match="targets"):
            load_targets(tmp_path / "targets.yaml")


def test_no_table_of_ours_holds_a_formula(tmp_path: Path) -> None:
    name, small = "model.layers.0.mlp.up_proj.weight", -1.5e-7
    tables = {
        "energies.csv": spectrum_table({name: KeptMatrix(1, 0.5, 8)}),
        "coefficients.csv": direction_table({name: (small, 1.0)}),
        "scores.csv": score_table({0: 0.0}, [[small], [small]], [0]),
    }
    sample = Sample(tmp_path / "ws")
    sample.family()
    sample.target("topic")
    content = (sample.ws.verdict("topic") / "verdict.json").read_bytes()
    verdict = VerdictFile.parse(content, where="verdict.json")
    assert [rate for arms in verdict.rates.values() for rate in arms.values() if isinstance(rate, Rate)]
    tables["rates.csv"] = gate_stage._table(verdict)
    assert {found for found in LIMITS if found.endswith(".csv")} <= set(tables)
    assert all(text.count("\n") > 1 for text in tables.values())
    assert {table: formulas(text) for table, text in tables.items()} == dict.fromkeys(tables, [])
