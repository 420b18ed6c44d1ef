"""The receipt of stage ``validate``: which prompt and task sets passed their checks, by digest.

Every stage that reads a validated set compares the set's digest with the receipt's. The receipt is written as a whole,
and set by set in ``receipts/``.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from safegene.errors import StaleArtifact
from safegene.workspace.digest import canonical_json, digest_bytes, digest_json
from safegene.workspace.fields import Digest
from safegene.workspace.manifest import read_manifest
from safegene.workspace.parsing import Strict, parse_json

RECEIPT, PARTS = "receipt.json", "receipts"


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

    def part(self, name: str) -> "SetReceipt":
        """The receipt of one set."""
        return SetReceipt(name=name, validated=self.sets[name], disjoint=self.disjoint if name == "gate" else None)


class SetReceipt(Strict):
    """Content of ``receipts/<set>.json``: the part of the receipt that concerns one set.

    A stage depends on the parts of the sets that it reads, so that a set that is added makes no other stage run again.

    Attributes:
        schema_: the format's name.
        name: of the set.
        validated: what was validated.
        disjoint: of the gate set only, see `ValidationReceipt`.
    """

    schema_: Literal["safegene/validated-set/v1"] = Field(default="safegene/validated-set/v1", alias="schema")
    name: str
    validated: ValidatedSet
    disjoint: OverlapRule | None

    @property
    def content(self) -> bytes:
        """The bytes of the file; the same set under the same rules always gives the same bytes."""
        return canonical_json(self.model_dump(mode="json", by_alias=True)) + b"\n"


def read_receipt(validation: Path) -> ValidationReceipt:
    """The receipt of an artefact of stage ``validate``.

    Raises:
        ArtifactError: nothing was validated, or the artefact was altered.
        FormatError: the receipt has another form.
    """
    read_manifest(validation, stage="validate")
    path = validation / RECEIPT
    return parse_json(ValidationReceipt, path.read_bytes(), where=str(path))


def validated_receipt(validation: Path, sets: Mapping[str, str]) -> str:
    """Digest of the receipt's parts of these sets, if it is of just these sets.

    Args:
        validation: the artefact of stage ``validate``.
        sets: name (``gate``, ``task-<task>``) -> digest of the set that is about to be used.

    Raises:
        ArtifactError, FormatError: see `read_receipt`.
        StaleArtifact: a set was changed since it was validated, or was never validated.
    """
    receipt = read_receipt(validation)
    for name, digest in sets.items():
        validated = receipt.sets[name].digest if name in receipt.sets else "(never)"
        if validated != digest:
            raise StaleArtifact(
                f"expected the set {name} as it was validated, {validated}, got {digest}, by {validation / RECEIPT}",
                remedy="run `safegene run`, which validates it first",
            )
    return parts_digest(receipt, sets)


def parts_digest(receipt: ValidationReceipt, sets: Iterable[str]) -> str:
    """Digest of the receipt's parts of these sets; of a set that was never validated, of its absence."""
    parts = {name: digest_bytes(receipt.part(name).content) if name in receipt.sets else None for name in sets}
    return digest_json(parts)
