"""The validation receipt: its bytes, and what a later stage is told by it."""

from pathlib import Path

import pytest

from safegene.datasets.receipt import (
    RECEIPT,
    OverlapRule,
    SetReceipt,
    ValidatedSet,
    ValidationReceipt,
    parts_digest,
    read_receipt,
    validated_receipt,
)
from safegene.errors import DigestMismatch, FormatError, StaleArtifact
from safegene.workspace.digest import digest_bytes, digest_file
from safegene.workspace.manifest import write_artefact
from safegene.workspace.parsing import parse_json
from tests.factories.validation import write_receipt

SET = ValidatedSet(digest=digest_bytes(b"rows"), rows=2, parts={"harmful/test": 2}, rules=3)
NOTE = ValidationReceipt(
    sets={"gate": SET}, disjoint=OverlapRule(ngram=8, max_overlap=0.5), great_expectations="1.24.1"
)


def test_its_bytes_are_those_of_earlier_versions() -> None:
    assert NOTE.content == (
        b'{"disjoint":{"max_overlap":0.5,"ngram":8},"great_expectations":"1.24.1","schema":"safegene/validation/v1",'
        b'"sets":{"gate":{"digest":"' + SET.digest.encode() + b'","parts":{"harmful/test":2},"rows":2,"rules":3}}}\n'
    )
    assert parse_json(ValidationReceipt, NOTE.content, where="f") == NOTE


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    (tmp_path / "gate.jsonl").write_text("rows")
    write_receipt(tmp_path / "validation", {"gate": tmp_path / "gate.jsonl"})
    return tmp_path / "gate.jsonl"


def test_a_validated_set_gives_the_digest_of_its_part(gate: Path) -> None:
    folder = gate.with_name("validation")
    digest = digest_file(gate)
    assert validated_receipt(folder, {"gate": digest}) == parts_digest(read_receipt(folder), ["gate"])
    assert parts_digest(read_receipt(folder), ["gate"]) != parts_digest(read_receipt(folder), ["gate", "task-none"])


def test_the_part_of_a_set_says_nothing_of_other_sets() -> None:
    other = NOTE.model_copy(update={"sets": {**NOTE.sets, "task-x": SET}, "great_expectations": "2"})
    assert other.part("gate") == NOTE.part("gate")
    assert other.part("task-x").disjoint is None
    rule = OverlapRule(ngram=7, max_overlap=0.5)
    assert NOTE.model_copy(update={"disjoint": rule}).part("gate") != NOTE.part("gate")
    assert parse_json(SetReceipt, NOTE.part("gate").content, where="f") == NOTE.part("gate")


def test_a_set_that_was_changed_or_never_validated_is_stale(gate: Path) -> None:
    folder = gate.with_name("validation")
    with pytest.raises(StaleArtifact, match=r"the set gate as it was validated, sha256:.*got sha256:"):
        validated_receipt(folder, {"gate": digest_bytes(b"other rows")})
    with pytest.raises(StaleArtifact, match=r"the set task-topic as it was validated, \(never\)"):
        validated_receipt(folder, {"task-topic": digest_file(gate)})


def test_a_changed_or_malformed_receipt_is_refused(gate: Path, tmp_path: Path) -> None:
    receipt = gate.with_name("validation") / RECEIPT
    receipt.write_bytes(receipt.read_bytes() + b" ")
    with pytest.raises(DigestMismatch):
        validated_receipt(receipt.parent, {})
    with write_artefact(tmp_path / "other", stage="validate", params={}, inputs={}) as draft:
        (draft.path / RECEIPT).write_text('{"schema": "safegene/validation/v1", "sets": {}}')
    with pytest.raises(FormatError, match=r"expected a ValidationReceipt, got disjoint: .*receipt\.json"):
        validated_receipt(tmp_path / "other", {})
