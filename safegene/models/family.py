"""Whether a checkpoint is of the family: the same forward pass, the same tensors, the same words.

A family is compared by what it is, not by how it is spelled. Both configs are resolved by transformers, tensors are
compared after tying and without buffers that the model recomputes, and a vocabulary may have grown: then the embedding
has more rows, which no repair touches.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safegene.checkpoints.checkpoint import Checkpoint
from safegene.checkpoints.structure import Structure
from safegene.errors import CheckpointError, ShapeMismatch, TensorMissing
from safegene.models.config import forward_values, is_tied
from safegene.models.structure import find_structure, model_without_weights, require_complete, text_config
from safegene.workspace.credentials import without_credentials
from safegene.workspace.digest import digest_json

SHOWN = 4  # differing values that one error names
REMEDY = "a target must be a fine-tune of the family's aligned model; use another workspace for another family"
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Architecture:
    """What must be equal where weights are compared or added.

    Attributes:
        values: what of the config decides the forward pass, see `forward_values`.
        tensors: name -> shape, after tying and without buffers that the model recomputes.
        vocabulary: the tensors whose first dimension is the number of tokens.
        structure: where the model holds the tensors.
    """

    values: Mapping[str, Any]
    tensors: Shapes
    vocabulary: frozenset[str]
    structure: Structure

    @property
    def digest(self) -> str:
        """Digest of values, names and shapes, whatever the number of tokens."""
        shapes = {name: (0, *shape[1:]) if name in self.vocabulary else shape for name, shape in self.tensors.items()}
        return digest_json({"config": dict(self.values), "tensors": {name: list(shapes[name]) for name in shapes}})

    @property
    def rows(self) -> int:
        """How many tokens the embedding has rows for."""
        return min((self.tensors[name][0] for name in self.vocabulary), default=0)


def architecture(checkpoint: Checkpoint, where: str) -> Architecture:
    """The architecture of a full checkpoint; none of its code runs.

    Args:
        checkpoint: verified by its headers.
        where: its source, for messages.

    Raises:
        CheckpointError: transformers cannot build the model of that config, or the output embedding that is stored
            differs from the input embedding that the config ties it to.
        TensorMissing, ShapeMismatch: a parameter of that model is not stored, or in another shape.
    """
    shapes = {name: spec.shape for name, spec in checkpoint.specs.items()}
    with without_credentials():
        model = model_without_weights(checkpoint.config, len(shapes), where)
        require_complete(model, shapes, where)
        structure = find_structure(model, shapes)
        values, size = forward_values(model.config), getattr(text_config(model.config), "vocab_size", None)
    heads = {name.rpartition(".")[0] for name, kind in structure.others.items() if kind == "head"}
    vocabulary = {
        name
        for name, kind in structure.others.items()
        if shapes[name][:1] == (size,)
        and (kind in ("embedding", "head") or (kind == "bias" and name.rpartition(".")[0] in heads))
    }
    left_out = {name for name, kind in structure.others.items() if kind == "buffer"}
    if is_tied(values):
        left_out |= _tied_heads(checkpoint, structure, vocabulary, where)
    tensors = {name: shape for name, shape in sorted(shapes.items()) if name not in left_out}
    return Architecture(values, tensors, frozenset(vocabulary - left_out), structure)


def require_same_architecture(
    got: Architecture, expected: tuple[Mapping[str, Any], Shapes], where: str, *, rows: int | None = None
) -> None:
    """Compare a checkpoint with the family.

    Args:
        got: of the checkpoint.
        expected: the family's `Architecture.values` and `Architecture.tensors`.
        where: the checkpoint, for messages.
        rows: how many rows of the embedding its own tokenizer needs; then rows may be added or, where they are padding,
            missing. None asks for the family's number.

    Raises:
        ShapeMismatch: a value or a shape differs, or there is an extra tensor; names both values.
        TensorMissing: a tensor of the family is missing; names the first.
    """
    _require_same_values(got.values, expected[0], where)
    shapes = expected[1]
    for name, shape in shapes.items():
        other = got.tensors.get(name)
        resized = rows is not None and name in got.vocabulary and other is not None and other[1:] == shape[1:]
        if other not in (None, shape) and not (resized and other[0] >= (rows or 0)):
            need = f" for {rows} tokens" if resized else ""
            raise ShapeMismatch(
                f"expected shape {list(shape)} of {name}{need}, got {list(other or ())}, in {where}", remedy=REMEDY
            )
    if missing := [name for name in shapes if name not in got.tensors]:
        raise TensorMissing(f"expected the tensor {missing[0]} of the family, got none, in {where}", remedy=REMEDY)
    if extra := [name for name in got.tensors if name not in shapes]:
        raise ShapeMismatch(f"expected only the family's tensors, got also {extra[0]}, in {where}", remedy=REMEDY)


def _require_same_values(got: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    ours, theirs = _flat(expected), _flat(got)
    different = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if not different:
        return
    named = [f"{key} {_short(ours.get(key))}, got {_short(theirs.get(key))}" for key in different[:SHOWN]]
    more = f"; and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
    raise ShapeMismatch(f"expected the family's {'; '.join(named)}{more}, in {where}", remedy=REMEDY)


def _tied_heads(checkpoint: Checkpoint, structure: Structure, vocabulary: set[str], where: str) -> set[str]:
    """The stored copies of the input embedding under a tie: some tools store them, others do not."""
    embeddings = [name for name in sorted(vocabulary) if structure.others[name] == "embedding"]
    heads = {name for name, kind in structure.others.items() if kind == "head"}
    if not embeddings:
        return set()
    for head in sorted(heads):
        if all(checkpoint.tensor_digest(head) != checkpoint.tensor_digest(name) for name in embeddings):
            raise CheckpointError(
                f"expected {head} to equal {embeddings[0]}, since tie_word_embeddings is true, got others, in {where}",
                remedy=f"set tie_word_embeddings to false if {head} is used; remove it from the weights if it is not",
            )
    return heads


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of nested mappings."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
