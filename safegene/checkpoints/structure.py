"""Which tensors of a checkpoint are matrices that a low-rank change can be added to, and where the model holds them.

A *matrix* is a stored tensor with two dimensions, named as it is, or slice i of a stored tensor with three, named
``<tensor>.<i>``. Its change always has the matrix's own stored shape (rows, columns). The model may hold it elsewhere:
transformers fuses the experts of a layer, for instance, into one parameter (experts, rows, columns).

`safegene.models.structure` finds all this on the model without weights, at `fetch`. It is written as
``structure.json``, so that stages that only stream weights need neither transformers nor the model.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from safegene.checkpoints.record import RECORD
from safegene.errors import StaleArtifact
from safegene.workspace.digest import canonical_json
from safegene.workspace.manifest import read_manifest
from safegene.workspace.parsing import Strict, parse_json

if TYPE_CHECKING:
    from safegene.vectors.linalg import LowRank, Patch

NAME = "structure.json"
Natural = tuple[tuple[int, int, str], ...]
Apply = Literal["linear", "transposed", "parameter"]
Kind = Literal[
    "attention",
    "mlp",
    "expert",
    "router",
    "mixer",
    "embedding",
    "head",
    "norm",
    "bias",
    "buffer",
    "convolution",
    "state",
    "vision",
    "other",
]


class Matrix(Strict):
    """One matrix.

    Attributes:
        shape: (rows, columns) as stored.
        tensor: the stored tensor.
        index: which slice of a stored tensor with three dimensions; None for one with two.
        kind: what it belongs to.
        parameter: the model's parameter that holds it.
        position: of that parameter among the model's, which is the order of layers.
        apply: how a change is applied beside the weights: ``linear``: it is the whole (out, in) weight of an
            `nn.Linear`; ``transposed``: the whole (in, out) weight of a Conv1D; ``parameter``: neither, so the change
            is added to the parameter during a forward pass.
        expert: the index within a parameter with three dimensions; None for one with two.
        offset: (row, column) of the parameter (or of the expert in it) at which the matrix begins.
        turned: whether the parameter holds the matrix's transpose.
    """

    OPTIONAL_KEYS: ClassVar[frozenset[str]] = frozenset()

    shape: tuple[int, int]
    tensor: str
    index: int | None
    kind: Kind
    parameter: str
    position: int
    apply: Apply
    expert: int | None
    offset: tuple[int, int]
    turned: bool

    @property
    def is_layer(self) -> bool:
        """Whether it is the whole weight of a linear layer and no router."""
        return self.apply != "parameter" and self.kind != "router"


class Structure(Strict):
    """The matrices of a checkpoint, and the rest.

    Attributes:
        matrices: name -> matrix.
        others: every stored tensor that holds no matrix -> its kind; a ``buffer`` is recomputed by the model.
    """

    OPTIONAL_KEYS: ClassVar[frozenset[str]] = frozenset()

    matrices: dict[str, Matrix]
    others: dict[str, Kind]

    @property
    def content(self) -> bytes:
        """The bytes of ``structure.json``: canonical JSON and a newline."""
        return canonical_json(self.model_dump(mode="json")) + b"\n"

    @property
    def names(self) -> tuple[str, ...]:
        """The matrices in the order of the model's parameters, and of experts within one."""
        return tuple(sorted(self.matrices, key=lambda name: (self.matrices[name].position, natural_key(name))))

    @property
    def layers(self) -> tuple[str, ...]:
        """The matrices that are whole weights of linear layers, in the order of layers; routers are left out."""
        return tuple(name for name in self.names if self.matrices[name].is_layer)

    def kinds(self) -> Mapping[str, Kind]:
        """Name of a matrix, or of another stored tensor -> its kind."""
        return {**{name: matrix.kind for name, matrix in self.matrices.items()}, **self.others}


def by_stored_name(matrices: Mapping[str, Matrix], patch: "Patch") -> "dict[str, LowRank]":
    """Changes named by the model's own parameters, as adapters name them, under the names of the stored matrices.

    The whole weight of a Conv1D is stored as (in, out), so its change is transposed. A name that is a stored matrix
    already, or no matrix at all, stays.

    Args:
        matrices: of the checkpoint that they change; see `Structure`.
        patch: ``<module>.weight`` -> up (out, r), down (r, in).
    """
    names = stored_names(matrices)
    stored = dict[str, "LowRank"]()
    for name, change in patch.items():
        matrix = matrices.get(names.get(name, name))
        turned = matrix is not None and matrix.apply == "transposed"
        stored[names.get(name, name)] = change.transposed() if turned else change
    return stored


def stored_names(matrices: Mapping[str, Matrix]) -> dict[str, str]:
    """The model's parameter -> the stored matrix, for the whole weights of layers."""
    return {matrix.parameter: name for name, matrix in matrices.items() if matrix.apply != "parameter"}


def natural_key(name: str) -> Natural:
    """A key that sorts names by layer: their numbers count as numbers."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"[.]", name))


def read_structure(artefact: Path) -> Structure:
    """``structure.json`` of the ``fetch`` artefact of a full checkpoint, after verifying every file of the artefact.

    Raises:
        ArtifactError: the artefact is incomplete.
        DigestMismatch: a file has changed.
        StaleArtifact: an earlier version of safegene fetched it and recorded no structure.
    """
    manifest = read_manifest(artefact)
    path = artefact / NAME
    if NAME not in manifest.files:
        raise StaleArtifact(
            f"expected {NAME} beside {RECORD}, got none: an earlier version fetched this checkpoint, in {artefact}",
            remedy="run `safegene run`: it fetches the checkpoint again from the cache",
        )
    return parse_json(Structure, path.read_bytes(), where=str(path))
