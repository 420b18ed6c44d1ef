"""ed25519 keys: the private key outside every repository, the public key pinned beside ``params.yaml``.

``ledger.pub`` is JSON: ``{"keys": [{"keyid", "keytype", "scheme", "keyval": {"public": hex}}]}``. A record is trusted
if one of these keys signed it. To rotate keys, pin the new key beside the old one.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, SSlibKey

from safegene.errors import FormatError, LedgerError
from safegene.workspace.atomic import write_file
from safegene.workspace.digest import canonical_json, strict_json
from safegene.workspace.layout import keys_folder


def create_key(folder: Path | None = None) -> str:
    """Make a key pair and write its private key to ``folder`` (default `keys_folder`) with mode 600.

    Returns:
        The key id.

    Raises:
        LedgerError: ``folder`` is inside a Git repository, where somebody could commit the private key.
    """
    folder = _resolved(folder)
    _require_outside_git(folder)
    signer = CryptoSigner.generate_ed25519()
    keyid = str(signer.public_key.keyid)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(_private_file(folder, keyid), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(signer.private_bytes)
    return keyid


def key_ids(folder: Path | None = None) -> tuple[str, ...]:
    """Ids of the private keys in ``folder``, the newest last."""
    files = _resolved(folder).glob("*.pem")
    return tuple(path.stem for path in sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name)))


def ensure_key(folder: Path | None = None) -> str:
    """Id of the newest private key in ``folder``; a key is made if there is none."""
    known = key_ids(folder)
    return known[-1] if known else create_key(folder)


def write_public_key(keyid: str, path: Path, folder: Path | None = None) -> None:
    """Add the public key to those that are pinned in ``path``, as the last one.

    Raises:
        LedgerError: the private key is not in ``folder``.
    """
    key = _load(_private_file(_resolved(folder), keyid)).public_key
    pinned = read_public_keys(path) if path.exists() else ()
    keys = [*(old for old in pinned if old.keyid != key.keyid), key]
    content = {"keys": [{"keyid": key.keyid, **key.to_dict()} for key in keys]}
    write_file(path, canonical_json(content) + b"\n")


def read_public_keys(path: Path) -> tuple[SSlibKey, ...]:
    """The pinned public keys.

    Raises:
        LedgerError: there is no such file, or it is malformed.
    """
    if not path.is_file():
        raise LedgerError(
            f"expected the pinned public key in {path}, got no such file",
            remedy="make a key with `safegene keys create`, or copy the public key of the ledger to this place",
        )
    try:
        raw = strict_json(path.read_bytes(), where=str(path))
        keys = tuple(SSlibKey.from_dict(item.pop("keyid"), item) for item in raw["keys"])
        for key in keys:
            if (key.keytype, key.scheme) != ("ed25519", "ed25519") or len(bytes.fromhex(key.keyval["public"])) != 32:
                raise ValueError(f"a key of type {key.keytype!r}")
    except (FormatError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise LedgerError(f"expected ed25519 public keys in {path}, got {error}") from None
    if not keys:
        raise LedgerError(f"expected at least one public key, got none, in {path}")
    return keys


def load_signer(keys: Sequence[SSlibKey], folder: Path | None = None) -> CryptoSigner:
    """The private key, in ``folder``, of the last pinned public key that has one there.

    Raises:
        LedgerError: no pinned key has a private key there, or others than its owner may read it.
    """
    folder = _resolved(folder)
    for key in reversed(keys):
        path = _private_file(folder, key.keyid)
        if path.is_file():
            signer = _load(path)
            if signer.public_key.keyval != key.keyval:
                raise LedgerError(f"expected the private key of {key.keyid}, got that of another key, in {path}")
            return signer
    raise LedgerError(
        f"expected the private key of one of {[key.keyid[:12] for key in keys]} in {folder}, got none",
        remedy="set SAFEGENE_KEYS to the folder that holds it, or make a key with `safegene keys create`",
    )


def _load(path: Path) -> CryptoSigner:
    if not path.is_file():
        raise LedgerError(
            f"expected the private key {path}, got no such file", remedy="`safegene keys list` shows yours"
        )
    if mode := stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise LedgerError(
            f"expected a private key that only its owner can read, got extra permissions {mode:03o}, in {path}",
            remedy=f"chmod 600 {path}",
        )
    try:
        key = load_pem_private_key(path.read_bytes(), None)
        if not isinstance(key, Ed25519PrivateKey):
            raise TypeError(type(key).__name__)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        got = type(error).__name__  # not the error's text, which could quote the file
        raise LedgerError(f"expected an ed25519 private key, got {got}, in {path}") from None
    return CryptoSigner(key)


def _private_file(folder: Path, keyid: str) -> Path:
    return folder / f"{''.join(c for c in keyid if c.isalnum())}.pem"


def _resolved(folder: Path | None) -> Path:
    return (folder or keys_folder()).expanduser().resolve()


def _require_outside_git(folder: Path) -> None:
    for parent in (folder, *folder.parents):
        if (parent / ".git").exists():
            raise LedgerError(
                f"expected a key folder outside every Git repository, got {folder} inside {parent}",
                remedy="set SAFEGENE_KEYS to a folder outside it",
            )
