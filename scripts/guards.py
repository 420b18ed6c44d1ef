"""The guards of the package, so that they can be taken out: see `scripts.mutate_guards`.

A guard is a ``raise``. Where a verdict or a judge's decision is a value (`VALUES`), a guard is also an ``if`` without
``else``, and the condition of a pair ``(condition, "phrase")``; it counts as met where the condition holds.
"""

import ast
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).parents[1]
VALUES = ("safegene/gate/", "safegene/evaluation/judges/")
MET = "MUTATE_GUARDS_MET"  # environment: the file of the guards that were met
REMOVED = "MUTATE_GUARDS_REMOVED"  # environment: the guards that are taken out


def guard(place: str) -> bool:
    """Whether the ``raise`` at a place is carried out; the place is noted, in child processes too."""
    if path := os.environ.get(MET):
        with open(path, "a", encoding="utf-8") as file:
            file.write(place + "\n")
    return place not in os.environ.get(REMOVED, "").split()


def install(folder: Path | None = None) -> None:
    """Instrument every module of the package that is imported from now on.

    Args:
        folder: an empty one, from which child processes learn to do the same.
    """
    sys.guards = guard  # type: ignore[attr-defined]
    sys.meta_path.insert(0, _Finder())
    if folder:
        (folder / "sitecustomize.py").write_text("from scripts.guards import install\n\ninstall()\n", encoding="utf-8")
        os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{ROOT}"


def met_in(path: Path) -> list[str]:
    """The guards that were met, each once, in the order of their last time."""
    lines = path.read_text(encoding="utf-8").split() if path.is_file() else ()
    return [*dict.fromkeys(reversed(lines))][::-1]


def take_out(guards: Iterable[str], met: Path) -> None:
    """Let some guards pass everything, in this process and its children, and note in a file which ones are met."""
    os.environ.update({REMOVED: " ".join(guards), MET: str(met)})


class _Instrument(ast.NodeTransformer):
    """Each guard asks `guard` with its place before it acts; a bare ``raise`` stays."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.values = path.startswith(VALUES)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:  # noqa: N802 - the name that ast calls
        if node.exc is None:
            return node
        return ast.copy_location(ast.If(self._asked(node), [node], []), node)

    def visit_If(self, node: ast.If) -> ast.AST:  # noqa: N802
        self.generic_visit(node)
        if self.values and not node.orelse and not isinstance(node.body[0], ast.If | ast.Raise):
            node.test = self._and_asked(node.test)
        return node

    def visit_Tuple(self, node: ast.Tuple) -> ast.AST:  # noqa: N802
        self.generic_visit(node)
        if self.values and len(node.elts) == 2 and isinstance(node.ctx, ast.Load):
            condition, phrase = node.elts
            is_text = isinstance(phrase, ast.JoinedStr) or (
                isinstance(phrase, ast.Constant) and isinstance(phrase.value, str)
            )
            if is_text and isinstance(condition, ast.Compare | ast.Call | ast.UnaryOp | ast.BoolOp):
                node.elts[0] = self._and_asked(condition)
        return node

    def _asked(self, node: ast.stmt | ast.expr) -> ast.expr:
        return ast.parse(f"__import__('sys').guards('{self.path}:{node.lineno}')", mode="eval").body

    def _and_asked(self, test: ast.expr) -> ast.expr:
        return ast.copy_location(ast.BoolOp(ast.And(), [test, self._asked(test)]), test)


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
