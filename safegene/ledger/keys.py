"""ed25519 keys: the private one outside every repository, the public one pinned beside ``params.yaml``.

``ledger.pub`` is JSON: ``{"keys": [{"keyid", "keytype", "scheme", "keyval": {"public": hex}}]}``. A record is trusted
if one of these keys signed it. To rotate, pin the new key beside the old one.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import platformdirs
from securesystemslib.signer import CryptoSigner, SSlibKey

from safegene.digest import canonical_json, strict_json
from safegene.errors import LedgerError


def keys_folder() -> Path:
    """Where private keys are: ``SAFEGENE_KEYS``, else the platform's configuration folder."""
    named = os.environ.get("SAFEGENE_KEYS")
    return Path(named) if named else Path(platformdirs.user_config_dir("safegene")) / "keys"


def create_key(public_key: Path, folder: Path | None = None) -> str:
    """Make a key pair, keep the private key in ``folder`` (mode 600) and pin the public one in ``public_key``.

    An existing ``public_key`` file keeps its keys; the new one is added.

    Returns:
        The key id.

    Raises:
        LedgerError: ``folder`` lies inside a Git repository, where a private key would be committed one day.
    """
    folder = (folder or keys_folder()).expanduser().resolve()
    _require_outside_git(folder)
    pinned = read_public_keys(public_key) if public_key.exists() else ()
    signer = CryptoSigner.generate_ed25519()
    key = signer.public_key
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(_private_file(folder, key.keyid), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(signer.private_bytes)
    write_public_keys(public_key, (*pinned, key))
    return str(key.keyid)


def write_public_keys(path: Path, keys: Sequence[SSlibKey]) -> None:
    """Pin public keys in a file, in one step."""
    draft = path.with_name(f".{path.name}.draft")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft.write_bytes(canonical_json({"keys": [{"keyid": key.keyid, **key.to_dict()} for key in keys]}) + b"\n")
    draft.replace(path)


def read_public_keys(path: Path) -> tuple[SSlibKey, ...]:
    """The pinned public keys.

    Raises:
        LedgerError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise LedgerError(
            f"expected the pinned public key in {path}, got no such file",
            remedy="make a key with `safegene keys`, or copy the ledger's public key there",
        )
    try:
        raw = strict_json(path.read_bytes(), where=str(path))
        keys = tuple(SSlibKey.from_dict(item.pop("keyid"), item) for item in raw["keys"])
        for key in keys:
            if (key.keytype, key.scheme) != ("ed25519", "ed25519") or len(bytes.fromhex(key.keyval["public"])) != 32:
                raise ValueError(f"a key of type {key.keytype!r}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LedgerError(f"expected ed25519 public keys in {path}, got {error}") from None
    if not keys:
        raise LedgerError(f"expected at least one public key, got none, in {path}")
    return keys


def load_signer(keys: Sequence[SSlibKey], folder: Path | None = None) -> CryptoSigner:
    """The private key of the last pinned public key that has one here.

    Raises:
        LedgerError: no pinned key has a private key here, or others than its owner may read it.
    """
    folder = (folder or keys_folder()).expanduser().resolve()
    for key in reversed(keys):
        path = _private_file(folder, key.keyid)
        if not path.is_file():
            continue
        if mode := stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise LedgerError(
                f"expected a private key that only its owner can read, got extra permissions {mode:03o}, in {path}",
                remedy=f"chmod 600 {path}",
            )
        try:
            return CryptoSigner.from_priv_key_uri(f"file2:{path}", key)
        except Exception as error:
            raise LedgerError(
                f"expected the private key of {key.keyid}, got {type(error).__name__}, in {path}"
            ) from None
    raise LedgerError(
        f"expected the private key of one of {[key.keyid[:12] for key in keys]} in {folder}, got none",
        remedy="set SAFEGENE_KEYS to the folder that holds it, or make a key with `safegene keys`",
    )


def _private_file(folder: Path, keyid: str) -> Path:
    return folder / f"{''.join(c for c in keyid if c.isalnum())}.pem"


def _require_outside_git(folder: Path) -> None:
    for parent in (folder, *folder.parents):
        if (parent / ".git").exists():
            raise LedgerError(
                f"expected a key folder outside every Git repository, got {folder} inside {parent}",
                remedy="set SAFEGENE_KEYS to a folder outside it",
            )
