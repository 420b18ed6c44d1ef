"""What import-linter cannot see: an import by a string."""

import ast
import subprocess
import sys
from pathlib import Path

import safegene

ROOT = Path(safegene.__file__).parent
ALLOWED = {
    "__init__.py",  # imports the names of the public API on first use
    "workspace/plugins.py",  # loads entry points
}
IMPORTERS = {"import_module", "entry_points", "resolve_name", "__import__", "importlib", "pkgutil", "runpy"}


def imports_by_string(path: Path) -> bool:
    """Whether a module names something that imports a module by its name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.Name):
            names.add(node.id)
    return bool(names & IMPORTERS)


def test_only_the_package_root_and_the_registry_import_by_a_string() -> None:
    assert {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if imports_by_string(path)} == ALLOWED


def test_a_run_and_a_server_of_deployments_import_no_torch() -> None:
    """Stages import it in their own process, and a run in which nothing changed needs none of it."""
    code = "import sys, flows.deployments; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
