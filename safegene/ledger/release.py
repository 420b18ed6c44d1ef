"""Releases: immutable copies, in the store, of what was promoted and of the evidence for it.

A release is ``releases/<sha256>/release.json``, which names every other file below it with its digest; the release's
digest is that of this file. So what is live stays addressable, and verifiable byte for byte, when later runs overwrite
the workspace that made it. Its folder ``candidate/`` is the artefact of stage ``calibrate``: a PEFT adapter to serve.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from safegene.errors import DigestMismatch, FormatError
from safegene.ledger.store import LocalStore, ObjectMissing, Store, check_key
from safegene.workspace.digest import PREFIX, canonical_json, digest_bytes, digest_json, is_digest, strict_json
from safegene.workspace.manifest import NAME as MANIFEST
from safegene.workspace.manifest import Manifest

SCHEMA = "safegene/release/v1"
INDEX = "release.json"

Artefact = tuple[Path, Manifest]
Source = tuple[Path, str]


@dataclass(frozen=True)
class Release:
    """What a release holds: file name -> digest."""

    target: str
    files: Mapping[str, str]

    @property
    def content(self) -> bytes:
        """The bytes of ``release.json``."""
        return canonical_json({"schema": SCHEMA, "target": self.target, "files": dict(self.files)})

    @property
    def digest(self) -> str:
        """The release's digest."""
        return digest_bytes(self.content)


def release_files(whole: Mapping[str, Artefact], receipts: Mapping[str, Artefact]) -> dict[str, Source]:
    """Name -> file and digest of a release: artefacts that go in ``whole``, and artefacts of which the receipt goes in.

    Args:
        whole: artefact name -> folder and verified manifest. The digests are the manifest's, so that a file changed
            after it was verified is found when it is copied.
        receipts: the same.
    """
    files: dict[str, Source] = {}
    for name, (folder, manifest) in {**receipts, **whole}.items():
        files[f"{name}/{MANIFEST}"] = (folder / MANIFEST, digest_bytes(manifest.content))
    for name, (folder, manifest) in whole.items():
        files |= {f"{name}/{path}": (folder / path, digest) for path, digest in manifest.files.items()}
    return files


def plan_release(target: str, files: Mapping[str, Source]) -> Release:
    """The release that these files would make."""
    return Release(target, {check_key(name): digest for name, (_, digest) in sorted(files.items())})


def publish_release(store: Store, release: Release, files: Mapping[str, Source]) -> None:
    """Copy a release into the store, its index last; again is harmless.

    Raises:
        DigestMismatch: a file has changed since the release was planned.
        StoreError: the store failed.
    """
    for name, expected in release.files.items():
        path, _ = files[name]
        data = path.read_bytes()
        if (got := digest_bytes(data)) != expected:
            raise DigestMismatch(f"expected {expected}, got {got}: the file changed after it was verified, in {path}")
        store.put_if_absent(_key(release.digest, name), data)
    store.put_if_absent(_key(release.digest, INDEX), release.content)


def read_release(store: Store, digest: str) -> Release:
    """Read a release's index, verified against its digest.

    Raises:
        DigestMismatch: it is missing or changed.
        FormatError: it is not a release.
    """
    data = _get(store, digest, INDEX, expected=digest)
    where = f"{store.uri}/{_key(digest, INDEX)}"
    raw = strict_json(data, where=where)
    if not isinstance(raw, dict) or set(raw) != {"schema", "target", "files"} or raw["schema"] != SCHEMA:
        raise FormatError(f"expected a release of schema {SCHEMA}, got another, in {where}")
    return Release(raw["target"], {check_key(name): value for name, value in raw["files"].items()})


def verify_release(store: Store, digest: str) -> Release:
    """Read a release and verify every byte in the store: no file missing, changed, or added.

    Raises:
        DigestMismatch: names the file.
    """
    release = read_release(store, digest)
    for name, expected in release.files.items():
        _get(store, digest, name, expected=expected)
    prefix = _key(digest, "")
    if extra := {key.removeprefix(prefix) for key in store.list(prefix)} - set(release.files) - {INDEX}:
        raise DigestMismatch(
            f"expected only files that {INDEX} names, got also {sorted(extra)}, in {store.uri}/{prefix}"
        )
    return release


def require_release_of(store: Store, digest: str, artefacts: Mapping[str, str]) -> Release:
    """`verify_release`, and that its receipts are those that a record names, and its files those of the receipts.

    Args:
        store: where it is.
        digest: the release.
        artefacts: artefact name -> digest, as the record that put it live says.

    Raises:
        DigestMismatch: names the file that is not what the record says.
    """
    release = verify_release(store, digest)
    for name, expected in artefacts.items():
        if (receipt := f"{name}/{MANIFEST}") not in release.files:
            continue
        where = f"{store.uri}/{_key(digest, receipt)}"
        raw = strict_json(_get(store, digest, receipt, expected=release.files[receipt]), where=where)
        if (got := digest_json(raw)) != expected:
            raise DigestMismatch(f"expected {expected}, as the record says, got {got}, in {where}")
        own = {path.removeprefix(f"{name}/"): one for path, one in release.files.items() if path.startswith(f"{name}/")}
        del own[MANIFEST]
        if own and own != raw["files"]:
            raise DigestMismatch(f"expected the files that {receipt} names, got others, in {where}")
    return release


def open_release(store: Store, digest: str, *, cache: Path, artefacts: Mapping[str, str] | None = None) -> Path:
    """A folder with a verified release: in place in a local store, else a copy below ``cache``.

    Args:
        store: where it is.
        digest: the release.
        cache: for copies.
        artefacts: what its record says of it; see `require_release_of`.

    Raises:
        DigestMismatch: a byte differs from the release's digest; names the file.
    """
    said, key = artefacts or {}, _key(digest, "").rstrip("/")
    if isinstance(store, LocalStore):
        require_release_of(store, digest, said)
        return store.root / key
    folder, copies = cache / key, LocalStore(cache)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        try:
            verify_release(copies, digest)
        except DigestMismatch:  # not here yet, or damaged since
            _download(store, digest, folder)
        require_release_of(copies, digest, said)
    return folder


def release_uri(store: Store, digest: str) -> str:
    """Where a release is."""
    return f"{store.uri}/{_key(digest, '')}".rstrip("/")


def _download(store: Store, digest: str, folder: Path) -> None:
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    release = read_release(store, digest)
    for name, expected in {**release.files, INDEX: digest}.items():
        path = draft / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_get(store, digest, name, expected=expected))
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


def _get(store: Store, digest: str, name: str, *, expected: str) -> bytes:
    key = _key(digest, name)
    try:
        data, _ = store.get(key)
    except ObjectMissing:
        raise DigestMismatch(f"expected {expected}, got no such file, in {store.uri}/{key}") from None
    if (got := digest_bytes(data)) != expected:
        raise DigestMismatch(f"expected {expected}, got {got}, in {store.uri}/{key}")
    return data


def _key(digest: str, name: str) -> str:
    if not is_digest(digest):
        raise FormatError(f"expected a release's digest, got {digest!r}")
    return f"releases/{digest.removeprefix(PREFIX)}/{name}"
