"""The public API: its names, what an import of it costs, and the examples of its functions, run in order."""

import ast
import doctest
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import safegene
from safegene.errors import SafegeneError

INIT = Path(safegene.__file__)
STEPS = (
    "init",
    "add_target",
    "validate",
    "fetch",
    "degrade",
    "extract",
    "compress",
    "select",
    "calibrate",
    "evaluate",
    "decide",
    "promote",
    "export",
    "merge",
    "publish_vector",
    "fetch_vector",
    "status",
    "audit",
)
TYPES = {
    "AttemptResult",
    "AuditReport",
    "CalibrateParams",
    "CompressParams",
    "DegradeParams",
    "EvaluateParams",
    "ExportedAdapter",
    "ExtractParams",
    "FetchParams",
    "GateParams",
    "JudgeParams",
    "Manifest",
    "MergedCheckpoint",
    "Params",
    "PromoteParams",
    "PublishedVector",
    "SelectParams",
    "Surrogate",
    "Target",
    "TargetState",
    "ValidateParams",
    "Workspace",
    "WorkspaceState",
}


def errors() -> set[str]:
    """Names of the error tree."""
    tree: list[type[SafegeneError]] = [SafegeneError]
    for kind in tree:
        tree += kind.__subclasses__()
    return {kind.__name__ for kind in tree if kind.__module__ == "safegene.errors"}


def test_all_holds_the_steps_their_types_and_the_errors() -> None:
    assert set(safegene.__all__) == {*STEPS, *TYPES, *errors(), "read_manifest", "__version__"}
    assert sorted(safegene.__all__) == list(safegene.__all__) == dir(safegene)


@pytest.mark.parametrize("name", safegene.__all__)
def test_every_public_name_can_be_used_and_is_documented(name: str) -> None:
    value: Any = getattr(safegene, name)
    assert name == "__version__" or inspect.getdoc(value)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'gene'"):
        getattr(safegene, "gene")  # noqa: B009 (mypy knows that the name is wrong)


def test_type_checkers_and_the_interpreter_find_the_same_definitions() -> None:
    tree = ast.parse(INIT.read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    checked = {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    table = next(node for node in tree.body if isinstance(node, ast.Assign) and "_DEFINED_IN" in ast.unparse(node))
    assert ast.literal_eval(table.value) == checked


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys; import safegene; print(*(n for n in sys.modules if n.startswith(('safegene', 'torch', 'pyd'))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"safegene", "safegene.errors", "safegene.text", "safegene.version"}


@pytest.mark.timeout(300)
def test_the_examples_hold_in_the_order_of_the_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    names: dict[str, Any] = {"safegene": safegene, "Path": Path}
    for step in STEPS:
        text = inspect.getdoc(getattr(safegene, step)) or ""
        example = parser.get_doctest(text, names, step, None, None)
        assert example.examples, f"{step} has no example"
        report: list[str] = []
        runner.run(example, out=report.append, clear_globs=False)
        assert not report, "".join(report)
        names.update(example.globs)
