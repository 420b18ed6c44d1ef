"""``examples/quickstart.ipynb`` runs from the first cell to the last, and uses the public API only."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> nbformat.NotebookNode:
    """The notebook after it ran, in an empty folder."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = tmp_path_factory.mktemp("notebook")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def codes(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell: nbformat.NotebookNode) -> str:
    """Everything that a cell put out as text."""
    return "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in cell.outputs)


def test_the_repair_passes_the_gate_and_is_promoted(executed: nbformat.NotebookNode) -> None:
    *_, decided, rates, promoted = codes(executed)
    assert "'outcome': 'pass'" in shown(decided)
    assert any("image/png" in output.get("data", {}) for output in rates.outputs)
    assert "sentiment: promoted to production" in shown(promoted)
    assert "verified 1 record," in shown(promoted)


def test_ten_cells_each_with_a_sentence_before_it_committed_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds == ["markdown"] + ["markdown", "code"] * 10
    assert all(not cell.outputs and cell.execution_count is None for cell in codes(notebook))


def test_it_imports_nothing_of_safegene_but_its_root() -> None:
    text = NOTEBOOK.read_text()
    assert re.findall(r"(?:import|from) safegene[\w.]*", text) == ["import safegene"]
