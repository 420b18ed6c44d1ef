"""The model folders of a release are signed: what is signed is all of the folder, and what verifies is only that."""

import importlib.util
import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.dsse import Envelope

from safegene.errors import DigestMismatch
from safegene.ledger.keys import create_key, load_signer, public_key
from safegene.ledger.model_signature import FIELD
from safegene.ledger.pins import PinnedKeys, write_pinned_keys
from safegene.pipeline.stages.promote import promote, resolve, rollback
from safegene.workspace.digest import canonical_json, digest_file
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest
from tests.factories.ledger import TARGET, attempt, flip_byte, ledger_of, make_workspace, problems_of, records


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with an ECDSA key, and one promotion."""
    monkeypatch.setenv("SAFEGENE_KEYS", str(tmp_path / "keys"))
    ws = make_workspace(tmp_path / "ws")
    keyid = create_key(scheme="ecdsa-sha2-nistp256")
    write_pinned_keys(ws.root / "ledger.pub", PinnedKeys((public_key(keyid),)))
    promote(ws, TARGET)
    return ws


def folder_of(ws: Workspace) -> Path:
    return ws.root / "ledger" / "releases" / str(records(ws)[0].release).removeprefix("sha256:")


def bundle(ws: Workspace, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder_of(ws) / f"{name}.sig").read_bytes())
    return content


@pytest.mark.parametrize("name", ["candidate", "vector"])
def test_a_signature_names_every_file_of_the_folder(ws: Workspace, name: str) -> None:
    statement = json.loads(b64decode(bundle(ws, name)["dsseEnvelope"]["payload"]))
    signed = {each["name"]: f"sha256:{each['digest']}" for each in statement["predicate"]["resources"]}
    artefact = ws.candidate(TARGET) if name == "candidate" else ws.vector
    manifest = read_manifest(artefact)
    assert signed == {**manifest.files, "manifest.json": digest_file(artefact / "manifest.json")}
    assert set(signed) == {path.relative_to(artefact).as_posix() for path in artefact.rglob("*") if path.is_file()}
    assert statement["predicate"]["serialization"]["ignore_paths"] == []
    Envelope.from_dict(bundle(ws, name)["dsseEnvelope"]).verify(list(ledger_of(ws).keys), 1)


@pytest.mark.skipif(importlib.util.find_spec("model_signing") is None, reason="needs OpenSSF's model-signing")
@pytest.mark.parametrize("fault", ["none", "a flipped byte", "a planted file", "another key"])
def test_openssf_s_own_tool_verifies_it_strictly(ws: Workspace, tmp_path: Path, fault: str) -> None:
    from model_signing import hashing, verifying

    key: Any = ledger_of(ws).keys[0] if fault != "another key" else public_key(create_key(scheme="ecdsa-sha2-nistp256"))
    pem = key._crypto_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(pem)
    folder = folder_of(ws) / "candidate"
    if fault == "a flipped byte":
        flip_byte(folder / "adapter_model.safetensors")
    if fault == "a planted file":
        (folder / ".github").mkdir()
        (folder / ".github" / "x").write_text("planted")
    strict = hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)
    check = verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "key.pem").set_hashing_config(strict)
    if fault == "none":
        check.verify(folder, folder_of(ws) / "candidate.sig")
    else:
        with pytest.raises(ValueError, match="mismatch"):
            check.verify(folder, folder_of(ws) / "candidate.sig")


@pytest.mark.parametrize("path", [".github/x", ".git/config", ".gitattributes", "x"])
def test_a_planted_file_is_named(ws: Workspace, path: str) -> None:
    planted = folder_of(ws) / "candidate" / path
    planted.parent.mkdir(exist_ok=True)
    planted.write_text("planted")
    with pytest.raises(DigestMismatch, match=path):
        resolve(ws, TARGET)
    assert path in "\n".join(problems_of(ws))


@pytest.mark.parametrize("name", ["candidate", "vector"])
@pytest.mark.parametrize("how", ["gone", "a flipped byte", "of other files", "by another key", "made again"])
def test_a_signature_that_is_not_the_recorded_one_is_named(ws: Workspace, name: str, how: str) -> None:
    path = folder_of(ws) / f"{name}.sig"
    if how == "gone":
        path.unlink()
    elif how == "a flipped byte":
        flip_byte(path)
    elif how == "of other files":
        other = folder_of(ws) / f"{'vector' if name == 'candidate' else 'candidate'}.sig"
        path.write_bytes(other.read_bytes())
    else:
        content = bundle(ws, name)
        envelope = Envelope.from_dict(bundle(ws, name)["dsseEnvelope"])
        envelope.signatures = {}
        keys = ledger_of(ws).keys if how == "made again" else (public_key(create_key()),)
        envelope.sign(load_signer(keys))
        path.write_bytes(canonical_json({**content, "dsseEnvelope": envelope.to_dict()}))
    with pytest.raises(DigestMismatch, match=rf"{name}\.sig"):
        resolve(ws, TARGET)
    assert f"{name}.sig" in "\n".join(problems_of(ws))


def test_signatures_are_verified_beyond_the_digest_that_the_record_names(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record can name the digest of a signature that no pinned key made."""
    from safegene.ledger import model_signature

    attempt(ws, alpha=2.0)
    record = records(ws)[0]
    foreign = public_key(create_key())
    with pytest.raises(DigestMismatch, match="by a pinned key, got none"):
        model_signature.verify_models(ledger_of(ws).store, record, (foreign,))
    monkeypatch.setattr(model_signature, "_files", lambda *_: {"manifest.json": "sha256:" + "0" * 64})
    with pytest.raises(DigestMismatch, match="got one of others"):
        model_signature.verify_models(ledger_of(ws).store, record, ledger_of(ws).keys)


def test_a_rollback_verifies_the_signatures_that_the_release_has(ws: Workspace) -> None:
    first = records(ws)[0]
    attempt(ws, alpha=2.0)
    rollback(ws, TARGET)
    security: Any = records(ws)[0].predicate.security
    assert security[FIELD] == first.predicate.security[FIELD]  # type: ignore[index,call-overload]
    assert resolve(ws, TARGET).release == first.release
    assert problems_of(ws) == []


def test_a_release_that_is_published_again_keeps_its_signatures(ws: Workspace) -> None:
    """The same release under another name of a channel: an ECDSA signature is another one each time."""
    before = {name: bundle(ws, name) for name in ("candidate", "vector")}
    promote(ws, TARGET, channel="staging")
    assert {name: bundle(ws, name) for name in ("candidate", "vector")} == before
    assert resolve(ws, TARGET, channel="staging")
