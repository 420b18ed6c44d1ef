"""``selection.json``: the layers that `select` kept, and the safety vector's factors in them."""

from collections.abc import Mapping
from pathlib import Path

from safegene.checkpoints.checkpoint import layer_of
from safegene.errors import CheckpointError
from safegene.vectors.linalg import Patch
from safegene.vectors.vector import SafetyVector
from safegene.workspace.digest import canonical_json
from safegene.workspace.manifest import read_manifest
from safegene.workspace.schema import Strict, parse_json

NAME = "selection.json"


class Selection(Strict):
    """The content of ``selection.json``.

    Attributes:
        scores: layer -> contrast of its activations, at least 0, rounded to six digits.
        kept: the layers kept, ascending.
    """

    scores: dict[str, float]
    kept: list[int]

    @property
    def content(self) -> bytes:
        """The bytes of the file: canonical JSON and a newline."""
        return canonical_json(self.model_dump()) + b"\n"


def new_selection(scores: Mapping[int, float], kept: list[int]) -> Selection:
    """The selection of the layers ``kept`` by their scores."""
    return Selection(scores={str(layer): round(score, 6) for layer, score in scores.items()}, kept=kept)


def read_selection(folder: Path) -> Selection:
    """The selection of a ``select`` artefact, after verifying every file of the artefact.

    Raises:
        ArtifactError: the artefact is incomplete.
        DigestMismatch: a file has changed.
        FormatError: the file is malformed.
    """
    read_manifest(folder, stage="select")
    path = folder / NAME
    return parse_json(Selection, path.read_bytes(), where=str(path))


def selected_matrices(vector: SafetyVector, selection: Path) -> Patch:
    """The vector's factors in the layers kept.

    Raises:
        CheckpointError: there are none.
        ArtifactError, DigestMismatch, FormatError: see `read_selection`.
    """
    kept = set(read_selection(selection).kept)
    factors = {name: change for name, change in vector.factors.items() if layer_of(name) in kept}
    if not factors:
        raise CheckpointError(
            f"expected factors in the layers kept {sorted(kept)}, got none, in {selection}",
            remedy="lower select.threshold, or raise select.top_layers or select.depth",
        )
    return factors
