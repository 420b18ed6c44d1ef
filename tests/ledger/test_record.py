"""A record is read only if it is exactly what the schema says, whoever signed it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey

from safegene.errors import LedgerError
from safegene.ledger.keys import create_key, load_signer, read_public_keys, write_public_key
from safegene.ledger.record import PAYLOAD, RecordDraft, seal, unseal
from safegene.workspace.digest import canonical_json, digest_json, strict_json

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def keys(tmp_path: Path) -> tuple[SSlibKey, ...]:
    write_public_key(create_key(tmp_path / "keys"), tmp_path / "ledger.pub", tmp_path / "keys")
    return read_public_keys(tmp_path / "ledger.pub")


@pytest.fixture
def signer(tmp_path: Path, keys: tuple[SSlibKey, ...]) -> CryptoSigner:
    return load_signer(keys, tmp_path / "keys")


def sealed(signer: CryptoSigner) -> bytes:
    draft = RecordDraft("pass", "t", "production", "a test", {}, {}, release=digest_json("release"))
    return seal(draft, sequence=0, previous=None, signer=signer)[0]


def resigned(data: bytes, signer: CryptoSigner, change: Change) -> bytes:
    """The record with a changed predicate, signed again."""
    statement = strict_json(Envelope.from_dict(strict_json(data, where="")).payload, where="")
    change(statement["predicate"])
    envelope = Envelope(canonical_json(statement), PAYLOAD, {})
    envelope.sign(signer)
    return canonical_json(envelope.to_dict())


def test_an_unchanged_predicate_signed_again_is_the_same_record(
    keys: tuple[SSlibKey, ...], signer: CryptoSigner
) -> None:
    data = sealed(signer)
    again = resigned(data, signer, lambda predicate: None)
    assert unseal(again, keys, where="here") == unseal(data, keys, where="here")


CHANGES: dict[str, Change] = {
    "an unknown field": lambda predicate: predicate.update(colour="blue"),
    "a missing field": lambda predicate: predicate.pop("incident"),
    "an unknown outcome": lambda predicate: predicate.update(outcome="maybe"),
    "a pass without a release": lambda predicate: predicate.update(release=None),
    "a refusal with a release": lambda predicate: predicate.update(outcome="fail"),
    "a release that is no digest": lambda predicate: predicate.update(release="sha256:0"),
    "a first record with a previous one": lambda predicate: predicate["chain"].update(previous=digest_json("x")),
    "a later record without a previous one": lambda predicate: predicate["chain"].update(sequence=3),
    "a sequence that is no integer": lambda predicate: predicate["chain"].update(sequence=False),
    "an unknown key in its chain": lambda predicate: predicate["chain"].update(colour="blue"),
    "an unknown key in its channel": lambda predicate: predicate["channel"].update(colour="blue"),
    "artefacts that are no mapping": lambda predicate: predicate.update(artefacts=[]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_signed_record_of_another_form_is_refused(
    keys: tuple[SSlibKey, ...], signer: CryptoSigner, name: str
) -> None:
    with pytest.raises(LedgerError, match="in here"):
        unseal(resigned(sealed(signer), signer, CHANGES[name]), keys, where="here")


def test_a_draft_that_contradicts_itself_is_not_signed(signer: CryptoSigner) -> None:
    draft = RecordDraft("pass", "t", "production", "a pass without a release", {}, {})
    with pytest.raises(LedgerError, match="have a release"):
        seal(draft, sequence=0, previous=None, signer=signer)
