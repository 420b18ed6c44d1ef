"""Signatures of the model folders of a release, in the format of OpenSSF Model Signing.

A release keeps ``candidate.sig`` and ``vector.sig``: Sigstore bundles (v0.3) of a DSSE envelope, whose in-toto
statement (https://model_signing/signature/v1.0) names every file of the folder with its sha256. No path is ignored,
also not ``.git`` and ``.github``, which OpenSSF's tool leaves out by default: let it keep them when it verifies.
Whoever has only the folder, the signature and the public key verifies them with that tool where the key is ECDSA; it
does not know ed25519, which any DSSE library verifies. The record names the digests of both signatures, since these say
neither name nor version of the model.

The format: https://github.com/ossf/model-signing-spec.
"""

import hashlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import Signer, SSlibKey

from safegene.errors import DigestMismatch, FormatError, PreconditionFailed
from safegene.ledger.record import PAYLOAD, STATEMENT, Record
from safegene.ledger.release import SIGNED, Release, read_release, release_key
from safegene.ledger.store import ObjectMissing, Store
from safegene.workspace.digest import PREFIX, canonical_json, digest_bytes, strict_json
from safegene.workspace.manifest import NAME as MANIFEST
from safegene.workspace.manifest import Manifest
from safegene.workspace.parsing import parse_json

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIGNATURE = "https://model_signing/signature/v1.0"
FIELD = "model_signatures"
"""Key of field ``security`` of a record: folder -> digest of its signature."""


def sign_models(store: Store, release: Release, signer: Signer) -> dict[str, str]:
    """Sign the model folders of a published release; a sound signature that is there already stays.

    Returns:
        Folder -> digest of its signature, for the record.

    Raises:
        DigestMismatch: there is a signature already that is not one of these files by this key.
        StoreError: the store failed.
    """
    digests = {}
    for name in SIGNED:
        files = _files(store, release, name)
        if not files:
            continue
        key = release_key(release.digest, f"{name}.sig")
        data = sign_files(name, files, signer)
        try:
            store.put_if_absent(key, data)
        except PreconditionFailed:  # an ECDSA signature is another one each time
            data, _ = store.get(key)
            verify_files(data, name, files, [signer.public_key], where=f"{store.uri}/{key}")
        digests[name] = digest_bytes(data)
    return digests


def verify_models(store: Store, record: Record, keys: Sequence[SSlibKey]) -> int:
    """Verify the signatures of model folders that a record names; records of earlier versions name none.

    Returns:
        How many were verified.

    Raises:
        DigestMismatch: a signature is missing or changed, or is not one of these files by a pinned key.
    """
    security: Any = record.predicate.security
    named = security.get(FIELD) if isinstance(security, Mapping) else None
    if not named or record.release is None:
        return 0
    release = read_release(store, record.release)
    for name, expected in named.items():
        key = release_key(record.release, f"{name}.sig")
        where = f"{store.uri}/{key}"
        try:
            data, _ = store.get(key)
        except ObjectMissing:
            raise DigestMismatch(f"expected the signature {expected}, got none, in {where}") from None
        if (got := digest_bytes(data)) != expected:
            raise DigestMismatch(f"expected the signature {expected}, got {got}, in {where}")
        verify_files(data, name, _files(store, release, name), keys, where=where)
    return len(named)


def _files(store: Store, release: Release, name: str) -> dict[str, str]:
    """File of a model folder -> digest, the manifest among them; {} where the release has no such folder."""
    manifest = f"{name}/{MANIFEST}"
    if manifest not in release.files:
        return {}
    key = release_key(release.digest, manifest)
    data, _ = store.get(key)
    if (got := digest_bytes(data)) != release.files[manifest]:
        raise DigestMismatch(f"expected {release.files[manifest]}, got {got}, in {store.uri}/{key}")
    return {MANIFEST: got, **parse_json(Manifest, data, where=f"{store.uri}/{key}").files}


def _statement(name: str, files: Mapping[str, str]) -> bytes:
    resources = [
        {"name": path, "algorithm": "sha256", "digest": digest.removeprefix(PREFIX)}
        for path, digest in sorted(files.items())
    ]
    root = hashlib.sha256(b"".join(bytes.fromhex(each["digest"]) for each in resources)).hexdigest()
    serialization = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": []}
    return canonical_json(
        {
            "_type": STATEMENT,
            "subject": [{"name": name, "digest": {"sha256": root}}],
            "predicateType": SIGNATURE,
            "predicate": {"serialization": serialization, "resources": resources},
        }
    )


def sign_files(name: str, files: Mapping[str, str], signer: Signer, *, keyid: str | None = None) -> bytes:
    """The signature of a folder's files (path -> digest), as the bytes of a Sigstore bundle.

    ``keyid`` names the key where that is not to be the id under which ``ledger.pub`` pins it.
    """
    envelope = Envelope(_statement(name, files), PAYLOAD, {})
    signature = envelope.sign(signer)
    pem = signer.public_key._crypto_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    content = {
        "mediaType": BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": hashlib.sha256(pem).hexdigest()}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": b64encode(envelope.payload).decode(),
            "payloadType": PAYLOAD,
            "signatures": [
                {"sig": b64encode(bytes.fromhex(signature.signature)).decode(), "keyid": keyid or signature.keyid}
            ],
        },
    }
    return canonical_json(content)


def verify_files(data: bytes, name: str, files: Mapping[str, str], keys: Sequence[SSlibKey], *, where: str) -> None:
    """Verify that the bytes are a signature of exactly these files by one of the keys.

    Raises:
        DigestMismatch: they are not.
    """
    try:
        raw = strict_json(data, where=where)
        envelope = Envelope.from_dict(raw["dsseEnvelope"])
        envelope.verify(list(keys), 1)
        if raw["mediaType"] != BUNDLE or envelope.payload_type != PAYLOAD:
            raise ValueError("another type of content")
    except VerificationError:
        raise DigestMismatch(
            f"expected a signature of the folder {name} by a pinned key, got none, in {where}"
        ) from None
    except (FormatError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DigestMismatch(f"expected a signature of the folder {name}, got {error}, in {where}") from None
    if envelope.payload != _statement(name, files):
        raise DigestMismatch(f"expected a signature of the files of {name}, got one of others, in {where}")
