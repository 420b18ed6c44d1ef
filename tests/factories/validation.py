"""What stage ``validate`` leaves behind, for tests of the stages that follow it."""

from collections.abc import Mapping
from pathlib import Path

from safegene.datasets.receipt import RECEIPT, OverlapRule, ValidatedSet, ValidationReceipt
from safegene.workspace.digest import digest_file
from safegene.workspace.manifest import write_artefact


def write_receipt(out: Path, sets: Mapping[str, Path]) -> None:
    """A receipt of these files, which are taken to be valid."""
    validated = {name: ValidatedSet(digest=digest_file(at), rows=0, parts={}, rules=0) for name, at in sets.items()}
    rule = OverlapRule(ngram=8, max_overlap=0.5)
    receipt = ValidationReceipt(sets=validated, disjoint=rule, great_expectations="0")
    with write_artefact(out, stage="validate", params={}, inputs={}) as draft:
        (draft.path / RECEIPT).write_bytes(receipt.content)
