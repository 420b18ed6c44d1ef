"""The matrices that an extraction finished, kept in the cache until it ends, so that a killed one goes on.

Factors lie in files named by their matrix's digest, what is known about them in a `ResumeLog` with each file's digest.
A file that is missing or changed is not used. The cache is optional: where it cannot be written, extraction goes on.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from safegene.errors import FormatError
from safegene.repair.delta import ExtractedMatrix
from safegene.vectors.linalg import LowRank
from safegene.vectors.vector import read_factors, write_factors
from safegene.workspace.digest import digest_file, digest_json
from safegene.workspace.layout import cache_folder
from safegene.workspace.parsing import Strict, parse
from safegene.workspace.resume_log import ResumeLog

log = logging.getLogger(__name__)
VERSION = 1  # raised when the same inputs give other factors


class Note(Strict):
    """What is known about one matrix.

    Attributes:
        total: energy of its mean difference.
        skipped: why it has no factors; None where it has.
        matrix: what is known about its factors.
        digest: of the file with its factors.
    """

    total: float
    skipped: str | None
    matrix: ExtractedMatrix | None = None
    digest: str | None = None


@dataclass(frozen=True)
class MatrixDelta:
    """The delta of one matrix.

    Attributes:
        total: energy of the mean difference.
        skipped: why it has no factors; "" where it has.
        matrix: what is known about the factors.
        factors: up (out, r), down (r, in).
    """

    total: float
    skipped: str = ""
    matrix: ExtractedMatrix | None = None
    factors: LowRank | None = None


class FinishedMatrices:
    """The finished matrices of one extraction."""

    def __init__(self, identity: Mapping[str, Any]) -> None:
        """``identity``: everything that the factors depend on, besides the code and torch."""
        self._identity = {**identity, "version": VERSION, "torch": str(torch.__version__)}
        self._folder = cache_folder() / "extract" / digest_json(self._identity).removeprefix("sha256:")

    def read(self) -> dict[str, MatrixDelta]:
        """Matrix name -> its delta, of those that are intact."""
        if not self._folder.is_dir():
            return {}
        try:
            notes = ResumeLog(self._folder, self._identity).read()
            found = {name: self._read(name, parse(Note, note, where=str(self._folder))) for name, note in notes.items()}
        except (FormatError, OSError) as error:
            log.warning("finished matrices are not used: %s", error)
            self.remove()
            return {}
        return {name: delta for name, delta in found.items() if delta is not None}

    def keep(self, name: str, delta: MatrixDelta) -> None:
        """Keep a finished matrix."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            digest = None
            if delta.factors is not None:
                write_factors({name: delta.factors}, self._folder / _file(name))
                digest = digest_file(self._folder / _file(name))
            note = Note(total=delta.total, skipped=delta.skipped, matrix=delta.matrix, digest=digest)
            ResumeLog(self._folder, self._identity).append({name: note.model_dump(mode="json")})
        except OSError as error:
            log.warning("%s is not kept for a later run: %s", name, error)

    def remove(self) -> None:
        """Remove all, once the artefact is complete."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, name: str, note: Note) -> MatrixDelta | None:
        path = self._folder / _file(name)
        if note.digest is None:
            return MatrixDelta(note.total, note.skipped or "")
        if not path.is_file() or digest_file(path) != note.digest:
            return None
        return MatrixDelta(note.total, "", note.matrix, read_factors(path)[name])


def _file(name: str) -> str:
    return f"{digest_json(name).removeprefix('sha256:')}.safetensors"
