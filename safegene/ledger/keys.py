"""Signing keys: the private key outside every repository, the public keys pinned beside ``params.yaml``.

A private key is a file of `keys_folder`, or the PEM in ``SAFEGENE_SIGNING_KEY``, or stays in a hardware module or a key
service that ``SAFEGENE_SIGNING_URI`` names (``hsm:2?label=TOKEN``, ``awskms:...``, ``gcpkms:...``, ``azurekms://...``:
the URIs of securesystemslib). Keys are ed25519; ECDSA on P-256 and P-384 is accepted, since many hardware modules know
nothing else. Which public keys are trusted: see `safegene.ledger.trust`.
"""

import os
import stat
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from securesystemslib.signer import CryptoSigner, Signature, Signer, SSlibKey

from safegene.errors import LedgerError
from safegene.ledger.pins import SCHEMES, PinnedKeys, parse_key, read_pinned_keys, retired_from, write_pinned_keys
from safegene.workspace.deadline import within
from safegene.workspace.digest import strict_json
from safegene.workspace.layout import keys_folder

PEM_VARIABLE = "SAFEGENE_SIGNING_KEY"
URI_VARIABLE = "SAFEGENE_SIGNING_URI"
PIN_VARIABLE = "SAFEGENE_SIGNING_PIN"
PROBE = b"safegene: a probe"
PROBE_SECONDS = 30.0
MAKE: dict[str, Callable[[], CryptoSigner]] = {
    "ed25519": CryptoSigner.generate_ed25519,
    "ecdsa-sha2-nistp256": CryptoSigner.generate_ecdsa,
}
"""Scheme -> what makes a key of it."""


def create_key(folder: Path | None = None, *, scheme: str = "ed25519") -> str:
    """Make a key pair and write its private key to ``folder`` (default `keys_folder`) with mode 600.

    Returns:
        The key id.

    Raises:
        LedgerError: ``folder`` is inside a Git repository, where somebody could commit the private key; or it cannot be
            written; or the scheme is unknown.
    """
    folder = _resolved(folder)
    _require_outside_git(folder)
    if scheme not in MAKE:
        raise LedgerError(f"expected one of the schemes {sorted(MAKE)}, got {scheme!r}")
    signer = MAKE[scheme]()
    keyid = str(signer.public_key.keyid)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(_private_file(folder, keyid), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(signer.private_bytes)
    except OSError as error:
        raise LedgerError(
            f"expected to write a private key, got {error.strerror}, in {folder}",
            remedy="set SAFEGENE_KEYS to a folder that can be written",
        ) from None
    return keyid


def key_ids(folder: Path | None = None) -> tuple[str, ...]:
    """Ids of the private keys in ``folder``, the newest last."""
    files = _resolved(folder).glob("*.pem")
    return tuple(path.stem for path in sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name)))


def ensure_key(folder: Path | None = None) -> str:
    """Id of the newest private key in ``folder``; a key is made if there is none."""
    known = key_ids(folder)
    return known[-1] if known else create_key(folder)


def public_key(name: str, folder: Path | None = None) -> SSlibKey:
    """The public key of a private key in ``folder``, or of a file.

    Args:
        name: a key id or its first 8 characters or more; or a file with a PEM public key, or with one key as `safegene
            keys show` prints it.
        folder: of private keys; default `keys_folder`.

    Raises:
        LedgerError: there is no such key, or the file is malformed.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return _read_public(path)
    folder = _resolved(folder)
    found = [known for known in key_ids(folder) if len(name) >= 8 and known.startswith(name)]
    if len(found) != 1:
        raise LedgerError(
            f"expected the id of a key in {folder}, or a file with a public key, got {name!r}",
            remedy="`safegene keys list` shows the keys of this machine",
        )
    return CryptoSigner(_load(_private_file(folder, found[0]))).public_key


def write_public_key(keyid: str, path: Path, folder: Path | None = None) -> None:
    """Add the public key to those that are pinned in ``path``, as the last one.

    Raises:
        LedgerError: the private key is not in ``folder``.
    """
    key = CryptoSigner(_load(_private_file(_resolved(folder), keyid))).public_key
    pinned = read_pinned_keys(path) if path.exists() else PinnedKeys(())
    keys = (*(old for old in pinned.keys if old.keyid != key.keyid), key)
    write_pinned_keys(path, PinnedKeys(keys, pinned.signatures))


def read_public_keys(path: Path) -> tuple[SSlibKey, ...]:
    """The pinned public keys; see `safegene.ledger.pins.read_pinned_keys`."""
    return read_pinned_keys(path).keys


def load_signer(keys: Sequence[SSlibKey], folder: Path | None = None) -> Signer:
    """Who signs with one of the pinned keys that were not retired, the last pinned one first.

    The key is that of ``SAFEGENE_SIGNING_KEY`` or ``SAFEGENE_SIGNING_URI`` where one of them is set and no ``folder``
    is given, otherwise a file of ``folder`` (default `keys_folder`).

    Raises:
        LedgerError: no pinned key has a private key there, or others than its owner may read it.
    """
    active = [key for key in reversed(keys) if retired_from(key) is None]
    if folder is None and (pem := os.environ.get(PEM_VARIABLE)):
        return _pinned(_private_key(pem.encode(), where=PEM_VARIABLE), active, where=PEM_VARIABLE)
    if folder is None and (uri := os.environ.get(URI_VARIABLE)):
        return _signer_at(uri, active)
    folder = _resolved(folder)
    for key in active:
        path = _private_file(folder, key.keyid)
        if path.is_file():
            return _pinned(_load(path), [key], where=str(path))
    raise LedgerError(
        f"expected the private key of one of {_short(active)} in {folder}, got none",
        remedy=_bring(active, folder),
    )


def _bring(active: Sequence[SSlibKey], folder: Path) -> str:
    """A machine signs with the ledger's key, or with one that its holder pins. A new key alone does not."""
    names = " or ".join(f"{key.keyid[:12]}...pem" for key in active[:3]) or "the key's file"
    own = key_ids(folder)
    mine = own[-1][:12] if own else "KEY"
    made = "" if own else " (`safegene keys create` makes KEY)"
    return (
        f"bring the ledger's key: copy {names} into {folder}, or set SAFEGENE_KEYS to its folder, or {PEM_VARIABLE} to "
        f"its PEM; or let its holder trust a key of yours: `safegene keys show {mine} > key.json` here{made}, "
        "`safegene keys pin key.json` (or `safegene keys rotate --to key.json`) there, then commit and pull"
    )


def _pinned(private: Any, active: Sequence[SSlibKey], *, where: str) -> Signer:
    """The signer of the pinned key that belongs to a private key."""
    own = CryptoSigner(private).public_key
    for key in active:
        if key.keyval == own.keyval:
            return CryptoSigner(private, key)
    raise LedgerError(
        f"expected the private key of one of {_short(active)}, got that of another key, {own.keyid[:12]}.., in {where}",
        remedy="let somebody whose key is pinned pin it with `safegene keys pin`",
    )


def _signer_at(uri: str, active: Sequence[SSlibKey]) -> Signer:
    """The signer of a hardware module or a key service, after it signed a probe that a pinned key verifies."""
    reasons = set[str]()
    for key in active:
        try:
            signer, signature = within(PROBE_SECONDS, partial(_probe, uri, key))
            key.verify_signature(signature, PROBE)
        except LedgerError:
            raise
        except Exception as error:  # each library behind the URI raises errors of its own
            reasons.add(type(error).__name__)
            continue
        return signer
    raise LedgerError(
        f"expected a key that signs for one of {_short(active)}, got {', '.join(sorted(reasons)) or 'none'}, in the "
        f"{uri.partition(':')[0]}: URI of {URI_VARIABLE}",
        remedy="pin its public key with `safegene keys pin`; PKCS#11 needs the extra safegene[hsm] and PYKCS11LIB",
    )


def _probe(uri: str, key: SSlibKey) -> tuple[Signer, Signature]:
    signer = Signer.from_priv_key_uri(uri, key, _secret)
    return signer, signer.sign(PROBE)


def _secret(name: str) -> str:
    """The PIN of a hardware module."""
    if pin := os.environ.get(PIN_VARIABLE):
        return pin
    raise LedgerError(f"expected the {name} of the key in {PIN_VARIABLE}, got none")


def _load(path: Path) -> Any:
    if not path.is_file():
        raise LedgerError(
            f"expected the private key {path}, got no such file", remedy="`safegene keys list` shows yours"
        )
    if mode := stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise LedgerError(
            f"expected a private key that only its owner can read, got extra permissions {mode:03o}, in {path}",
            remedy=f"chmod 600 {path}",
        )
    return _private_key(path.read_bytes(), where=str(path))


def _private_key(pem: bytes, *, where: str) -> Any:
    try:
        private = load_pem_private_key(pem, None)
        if (scheme := CryptoSigner(private).public_key.scheme) not in SCHEMES:
            raise TypeError(scheme)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        got = type(error).__name__  # not the error's text, which could quote the key
        raise LedgerError(f"expected a PEM private key, ed25519 or ECDSA, got {got}, in {where}") from None
    return private


def _read_public(path: Path) -> SSlibKey:
    data = path.read_bytes()
    if data.lstrip().startswith(b"{"):
        return parse_key(strict_json(data, where=str(path)), where=str(path))
    try:
        key: Any = SSlibKey.from_crypto(load_pem_public_key(data))
        return parse_key({"keyid": key.keyid, **key.to_dict()}, where=str(path))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise LedgerError(f"expected a PEM public key, got {type(error).__name__}, in {path}") from None


def _short(keys: Sequence[SSlibKey]) -> list[str]:
    return [f"{key.keyid[:12]}.." for key in keys]


def _private_file(folder: Path, keyid: str) -> Path:
    return folder / f"{''.join(c for c in keyid if c.isalnum())}.pem"


def _resolved(folder: Path | None) -> Path:
    folder = (folder or keys_folder()).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise LedgerError(
            f"expected a folder of private keys, got a file, in {folder}", remedy="set SAFEGENE_KEYS to a folder"
        )
    return folder


def _require_outside_git(folder: Path) -> None:
    for parent in (folder, *folder.parents):
        if (parent / ".git").exists():
            raise LedgerError(
                f"expected a key folder outside every Git repository, got {folder} inside {parent}",
                remedy="set SAFEGENE_KEYS to a folder outside it",
            )
