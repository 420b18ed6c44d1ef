"""The receipt of stage ``validate``: which prompt and task sets passed their checks, by digest.

Every stage that reads a validated set compares the set's digest with the receipt's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from safegene.errors import StaleArtifact
from safegene.workspace.digest import canonical_json, digest_bytes
from safegene.workspace.fields import Digest
from safegene.workspace.manifest import read_manifest
from safegene.workspace.parsing import Strict, parse_json

RECEIPT = "receipt.json"


class ValidatedSet(Strict):
    """One set that passed.

    Attributes:
        digest: of the file's bytes.
        rows: number of rows.
        parts: ``kind/split`` -> number of rows.
        rules: number of expectations that were checked.
    """

    digest: Digest
    rows: int
    parts: dict[str, int]
    rules: int


class OverlapRule(Strict):
    """How similar a gate prompt may be to a fitted one, see `safegene.datasets.contamination`."""

    ngram: int
    max_overlap: float


class ValidationReceipt(Strict):
    """Content of ``receipt.json``.

    Attributes:
        OPTIONAL_KEYS: ClassVar[frozenset[str]] = frozenset()

    schema_: the format's name.
        sets: ``degrade``, ``safety``, ``gate`` or ``task-<task>`` -> what was validated.
        disjoint: the rule that kept the gate set apart from the others.
        great_expectations: version of the library.
    """

    schema_: Literal["safegene/validation/v1"] = Field(default="safegene/validation/v1", alias="schema")
    sets: dict[str, ValidatedSet]
    disjoint: OverlapRule
    great_expectations: str

    @property
    def content(self) -> bytes:
        """The bytes of the file; the same receipt always gives the same bytes."""
        return canonical_json(self.model_dump(mode="json", by_alias=True)) + b"\n"


def validated_receipt(validation: Path, sets: Mapping[str, str] | None = None) -> str:
    """Digest of the receipt, if it is of just these sets.

    Args:
        validation: the artefact of stage ``validate``.
        sets: name (``gate``, ``task-<task>``) -> digest of the set that is about to be used.

    Raises:
        ArtifactError: nothing was validated, or the artefact was altered.
        FormatError: the receipt has another form.
        StaleArtifact: a set was changed since it was validated, or was never validated.
    """
    read_manifest(validation, stage="validate")
    path = validation / RECEIPT
    data = path.read_bytes()
    receipt = parse_json(ValidationReceipt, data, where=str(path))
    for name, digest in (sets or {}).items():
        validated = receipt.sets[name].digest if name in receipt.sets else "(never)"
        if validated != digest:
            raise StaleArtifact(
                f"expected the set {name} as it was validated, {validated}, got {digest}, by {path}",
                remedy="run `safegene run`, which validates it first",
            )
    return digest_bytes(data)
