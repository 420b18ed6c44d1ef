"""Whether PEFT would read an adapter on the family's base as it is read here: the same modules, the same shapes."""

from typing import TYPE_CHECKING

from torch import nn

from safegene.checkpoints.adapter import Adapter
from safegene.checkpoints.adapter_targets import MERGE
from safegene.checkpoints.checkpoint import Checkpoint
from safegene.checkpoints.export.peft_layout import converts_names, renamed_modules
from safegene.checkpoints.structure import Structure, stored_names
from safegene.errors import CheckpointError, ShapeMismatch, TensorMissing
from safegene.models.structure import find_structure, model_without_weights
from safegene.workspace.credentials import without_credentials

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHOWN = 3  # modules that one error names


def adapted_matrices(adapter: Adapter, base: Checkpoint, where: str) -> dict[str, tuple[int, int, int]]:
    """Stored matrix -> (rows, r, columns) of an adapter's changes.

    Args:
        adapter: verified by its header.
        base: the full checkpoint that it is added to.
        where: the adapter's source, for messages.

    Raises:
        TensorMissing: the base has no such matrix, or a module that PEFT would adapt has no factors.
        ShapeMismatch: a change has another shape than its matrix.
        CheckpointError: the adapter holds factors that PEFT would not use, or use otherwise.
    """
    shapes = {name: spec.shape for name, spec in base.specs.items()}
    with without_credentials():
        model = model_without_weights(base.config, len(shapes), str(base.root))
        structure = find_structure(model, shapes)
    matrices = _shapes(adapter, structure, where)
    _require_targets(adapter, structure, model, where)
    return matrices


def _shapes(adapter: Adapter, structure: Structure, where: str) -> dict[str, tuple[int, int, int]]:
    names = stored_names(structure.matrices)
    found = {}
    for name, (out, rank, inner) in adapter.shapes.items():
        stored = names.get(name, name)
        matrix = structure.matrices.get(stored)
        if matrix is None or matrix.apply == "parameter":
            raise TensorMissing(
                f"expected adapted layers of the family's language model, got {name}, in {where}", remedy=MERGE
            )
        expected = matrix.shape[::-1] if matrix.apply == "transposed" else matrix.shape
        if expected != (out, inner):
            got = [out, inner]
            raise ShapeMismatch(f"expected a change of shape {list(expected)} for {name}, got {got}, in {where}")
        found[stored] = (matrix.shape[0], rank, matrix.shape[1])
    return found


def _require_targets(adapter: Adapter, structure: Structure, model: "PreTrainedModel", where: str) -> None:
    """Compare the modules that have factors with those that the config names, as PEFT matches them."""
    held = {_module(name, structure) for name in adapter.modules}
    if converts_names(model) and (renamed := renamed_modules(model, held)):
        raise CheckpointError(
            f"expected factors that PEFT reads as they are, got {_some(renamed)}, which it takes for parts of experts, "
            f"in {where}",
            remedy=MERGE,
        )
    head, named = model.get_output_embeddings(), set[str]()
    for name, module in model.named_modules():
        linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        if name and adapter.targets.matches(name, linear=linear and module is not head):
            named.add(name)
    remedy = f"correct target_modules and layers_to_transform in adapter_config.json, or {MERGE}"
    if extra := sorted(held - named):
        raise CheckpointError(
            f"expected factors of the modules that the config names, got also {_some(extra)}, "
            f"which PEFT would not use, in {where}",
            remedy=remedy,
        )
    if missing := sorted(named - held):
        raise TensorMissing(
            f"expected factors of every module that the config names, got none for {_some(missing)}, in {where}",
            remedy=remedy,
        )


def _module(name: str, structure: Structure) -> str:
    """The path in the model of a module that an adapter names by its stored tensor or by the model's parameter."""
    matrix = structure.matrices.get(f"{name}.weight")
    return matrix.parameter.removesuffix(".weight") if matrix and matrix.apply != "parameter" else name


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
