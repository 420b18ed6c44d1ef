"""Where a signing key comes from, and which public keys a ledger accepts."""

import importlib.util
import json
import shutil
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from securesystemslib.signer import CryptoSigner, SSlibKey

from safegene.errors import LedgerError
from safegene.ledger.keys import create_key, key_ids, load_signer, public_key, read_public_keys, write_public_key
from safegene.ledger.pins import (
    PinnedKeys,
    key_to_json,
    may_approve,
    owner_of,
    parse_pinned_keys,
    person,
    read_pinned_keys,
    retired_from,
    signatures_needed,
    with_extras,
    write_pinned_keys,
)
from safegene.ledger.record import RecordDraft, seal, unseal

EC = "ecdsa-sha2-nistp256"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def pem_of(folder: Path, keyid: str) -> str:
    return (folder / f"{keyid}.pem").read_text()


def signs(signer: Any, keys: tuple[SSlibKey, ...]) -> tuple[str, ...]:
    """Ids of the keys that a record of this signer is verified with."""
    data, _ = seal(RecordDraft("fail", "t", "c", "r", {}, {}), sequence=0, previous=None, signer=signer)
    return unseal(data, keys, where="here").signers


@pytest.mark.parametrize("scheme", ["ed25519", EC])
def test_a_key_of_each_scheme_signs_records_that_its_pinned_half_verifies(folder: Path, scheme: str) -> None:
    keyid = create_key(folder, scheme=scheme)
    write_public_key(keyid, folder / "ledger.pub", folder)
    keys = read_public_keys(folder / "ledger.pub")
    assert keys[0].scheme == scheme
    assert signs(load_signer(keys, folder), keys) == (keyid,)


def test_an_unknown_scheme_is_refused(folder: Path) -> None:
    with pytest.raises(LedgerError, match="expected one of the schemes"):
        create_key(folder, scheme="rsa")
    assert not folder.exists()


def test_the_environment_brings_a_key_that_no_folder_holds(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyid = create_key(folder)
    keys = (public_key(keyid, folder),)
    monkeypatch.setenv("SAFEGENE_KEYS", str(tmp_path / "nothing"))
    with pytest.raises(LedgerError, match="got none") as caught:
        load_signer(keys)
    assert "SAFEGENE_SIGNING_KEY" in caught.value.remedy
    monkeypatch.setenv("SAFEGENE_SIGNING_KEY", pem_of(folder, keyid))
    assert signs(load_signer(keys), keys) == (keyid,)


@pytest.mark.parametrize("content", ["another key", "no key", "rsa"])
def test_a_key_of_the_environment_that_is_not_pinned_is_refused_and_never_printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    keys = (public_key(create_key(folder), folder),)
    rsa = generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    pem = {"another key": pem_of(folder, create_key(folder)), "no key": "CANARY-8231", "rsa": rsa}[content]
    monkeypatch.setenv("SAFEGENE_SIGNING_KEY", pem)
    with pytest.raises(LedgerError, match="SAFEGENE_SIGNING_KEY") as caught:
        load_signer(keys)
    said = f"{caught.value.message} {caught.value.remedy}"
    assert not [line for line in pem.splitlines() if line in said]


def test_a_uri_names_the_key_of_another_program(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned, foreign = create_key(folder), create_key(folder)
    keys = (public_key(pinned, folder),)
    monkeypatch.setenv("SAFEGENE_SIGNING_URI", f"file2:{folder / pinned}.pem")
    assert signs(load_signer(keys), keys) == (pinned,)
    for uri in (f"file2:{folder / foreign}.pem", "file2:/nothing", "nothing:2", ""):
        monkeypatch.setenv("SAFEGENE_SIGNING_URI", uri)
        monkeypatch.setenv("SAFEGENE_KEYS", str(folder / "empty"))
        with pytest.raises(LedgerError, match="expected a key that signs|expected the private key"):
            load_signer(keys)


@pytest.mark.skipif(
    not shutil.which("softhsm2-util") or importlib.util.find_spec("pkcs11") is None,
    reason="needs SoftHSM (softhsm2-util) and the extra safegene[hsm]",
)
def test_a_key_in_a_hardware_module_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (module,) = [
        path
        for path in map(Path, ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so"))
        if path.is_file()
    ]
    (tmp_path / "tokens").mkdir()
    (tmp_path / "conf").write_text(f"directories.tokendir = {tmp_path / 'tokens'}\nobjectstore.backend = file\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "conf"))
    monkeypatch.setenv("PYKCS11LIB", str(module))
    init = ["--init-token", "--free", "--label", "team", "--pin", "4711", "--so-pin", "4711"]
    subprocess.run(["softhsm2-util", *init], check=True, capture_output=True)
    import pkcs11
    from pkcs11.util.ec import encode_named_curve_parameters
    from securesystemslib.signer import HSMSigner

    with pkcs11.lib(str(module)).get_token(token_label="team").open(rw=True, user_pin="4711") as session:
        curve = {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
        domain = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
        domain.generate_keypair(store=True, id=b"\x02", label="signing")
    uri, key = HSMSigner.import_(hsm_keyid=2, token_label="team")
    monkeypatch.setenv("SAFEGENE_SIGNING_URI", uri)
    with pytest.raises(LedgerError, match="SAFEGENE_SIGNING_PIN"):
        load_signer((key,))
    monkeypatch.setenv("SAFEGENE_SIGNING_PIN", "4711")
    assert signs(load_signer((key,)), (key,)) == (key.keyid,)
    other = CryptoSigner.generate_ecdsa().public_key
    with pytest.raises(LedgerError, match="expected a key that signs for one of"):
        load_signer((other,))
    monkeypatch.setenv("SAFEGENE_SIGNING_PIN", "0000")
    with pytest.raises(LedgerError, match="PinIncorrect") as caught:
        load_signer((key,))
    assert "0000" not in f"{caught.value.message} {caught.value.remedy}"


class MockKeyService:
    """A mock of boto3's KMS client: it signs digests by a key of its own, as the service documents it."""

    def __init__(self, name: str) -> None:
        assert name == "kms"
        self.fault: Callable[[], object] = lambda: None
        self.private = ec.generate_private_key(ec.SECP256R1())
        der = self.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.described: dict[str, object] = {"PublicKey": der, "SigningAlgorithms": ["ECDSA_SHA_256"]}

    def get_public_key(self, KeyId: str) -> dict[str, object]:  # noqa: N803 (the service's names)
        return self.described

    def sign(self, KeyId: str, Message: bytes, MessageType: str, SigningAlgorithm: str) -> dict[str, bytes]:  # noqa: N803
        self.fault()
        assert (KeyId, MessageType, SigningAlgorithm) == ("alias/team", "DIGEST", "ECDSA_SHA_256")
        return {"Signature": self.private.sign(Message, ec.ECDSA(Prehashed(SHA256())))}


def test_a_key_of_a_key_service_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ClientError, NoCredentialsError
    from securesystemslib.signer import AWSSigner

    service = MockKeyService("kms")
    monkeypatch.setattr("boto3.client", lambda name: service)
    uri, key = AWSSigner.import_("alias/team")
    monkeypatch.setenv("SAFEGENE_SIGNING_URI", uri)
    assert signs(load_signer((key,)), (key,)) == (key.keyid,)
    with pytest.raises(LedgerError, match="UnverifiedSignatureError, in the awskms: URI"):
        load_signer((CryptoSigner.generate_ecdsa().public_key,))

    def fail(error: Exception) -> None:
        raise error

    for error in (NoCredentialsError(), ClientError({"Error": {"Code": "AccessDeniedException"}}, "Sign")):
        service.fault = partial(fail, error)
        with pytest.raises(LedgerError, match=type(error).__name__):
            load_signer((key,))
    monkeypatch.setattr("safegene.ledger.keys.PROBE_SECONDS", 0.1)
    hangs = threading.Event()
    service.fault = hangs.wait
    with pytest.raises(LedgerError, match="got DeadlinePassed"):
        load_signer((key,))
    hangs.set()


def test_a_retired_key_signs_no_more(folder: Path) -> None:
    old, new = create_key(folder), create_key(folder)
    keys = (with_extras(public_key(old, folder), until=3), public_key(new, folder))
    assert load_signer(keys, folder).public_key.keyid == new
    with pytest.raises(LedgerError, match="got none"):
        load_signer(keys[:1], folder)


def test_a_public_key_is_found_by_its_id_in_a_file_and_as_pem(folder: Path, tmp_path: Path) -> None:
    keyid = create_key(folder, scheme=EC)
    key = public_key(keyid[:8], folder)
    assert key.keyid == keyid
    (tmp_path / "ours.json").write_text(json.dumps(key_to_json(key)))
    pem = CryptoSigner.from_priv_key_uri(f"file2:{folder / keyid}.pem", key)._private_key.public_key()
    (tmp_path / "key.pem").write_bytes(pem.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    for name in ("ours.json", "key.pem"):
        assert public_key(str(tmp_path / name), folder) == key
    (tmp_path / "bad.pem").write_text("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    for name in (str(tmp_path / "bad.pem"), keyid[:7], "nothing"):
        with pytest.raises(LedgerError, match=r"expected (a PEM public key|the id of a key)"):
            public_key(name, folder)


def test_what_is_pinned_is_read_as_it_was_written(folder: Path) -> None:
    key = public_key(create_key(folder), folder)
    ada = with_extras(key, owner="Ada Lovelace", roles=["approve"], until=7)
    write_pinned_keys(folder / "ledger.pub", PinnedKeys((ada,), ((0, 1), (5, 3))))
    (got,), signatures = (
        read_pinned_keys(folder / "ledger.pub").keys,
        read_pinned_keys(folder / "ledger.pub").signatures,
    )
    assert (owner_of(got), may_approve(got), retired_from(got)) == ("Ada Lovelace", True, 7)
    assert [signatures_needed(signatures, number) for number in (0, 4, 5, 9)] == [1, 1, 3, 3]
    assert signatures_needed((), 9) == 1
    assert person(with_extras(key, owner="  \uff21DA  lovelace ")) == person(ada)
    assert not may_approve(key)


def entry(**changes: Any) -> dict[str, Any]:
    key = CryptoSigner.generate_ed25519().public_key
    return {**key_to_json(key), **changes}


BAD_KEYS: dict[str, dict[str, Any]] = {
    "an unknown word": {"colour": "blue"},
    "an approver without an owner": {"roles": ["approve"]},
    "an unknown role": {"owner": "a", "roles": ["approve", "root"]},
    "a blank owner": {"owner": "  "},
    "an owner with a control character": {"owner": "a\x1b[2J"},
    "an endless owner": {"owner": "a" * 201},
    "a number that is none": {"until": True},
    "a number below 0": {"until": -1},
    "another scheme": {"scheme": "rsassa-pss-sha256"},
    "a scheme of another type": {"scheme": EC},
    "a short key": {"keyval": {"public": "00"}},
    "a path as key id": {"keyid": "../../x"},
}


@pytest.mark.parametrize("what", BAD_KEYS)
def test_a_malformed_entry_is_refused(what: str) -> None:
    with pytest.raises(LedgerError, match=r"ECDSA public keys in ledger\.pub"):
        parse_pinned_keys({"keys": [entry(**BAD_KEYS[what])]}, where="ledger.pub")


def test_one_key_is_not_two_and_its_curve_is_that_of_its_scheme() -> None:
    one = entry()
    for other in ({**one, "keyid": "abc"}, {**entry(), "keyid": one["keyid"]}):
        with pytest.raises(LedgerError, match="got one twice"):
            parse_pinned_keys({"keys": [one, other]}, where="ledger.pub")
    p256 = key_to_json(CryptoSigner.generate_ecdsa().public_key)
    assert parse_pinned_keys({"keys": [p256]}, where="ledger.pub")
    with pytest.raises(LedgerError, match="another curve"):
        parse_pinned_keys({"keys": [{**p256, "scheme": "ecdsa-sha2-nistp384"}]}, where="ledger.pub")


@pytest.mark.parametrize(
    "signatures",
    [
        {"from": 0},
        [{"from": 0}],
        [{"from": 0, "count": 0}],
        [{"from": 0, "count": 10}],
        [{"from": 0, "count": True}],
        [{"from": 3, "count": 1}, {"from": 3, "count": 2}],
        [{"from": -1, "count": 2}],
        [{"from": 0, "count": 2, "why": ""}],
    ],
)
def test_malformed_numbers_of_signatures_are_refused(signatures: Any) -> None:
    with pytest.raises(LedgerError, match=r"in ledger\.pub"):
        parse_pinned_keys({"keys": [entry()], "signatures": signatures}, where="ledger.pub")


def test_a_folder_of_keys_that_is_a_file_or_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAFEGENE_KEYS", str(tmp_path / "file"))
    for call in (key_ids, create_key):
        with pytest.raises(LedgerError, match="got a file"):
            call()
    monkeypatch.setenv("SAFEGENE_KEYS", str(tmp_path / "file" / "below"))
    with pytest.raises(LedgerError, match="Not a directory"):
        create_key()
