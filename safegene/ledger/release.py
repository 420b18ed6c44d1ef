"""Releases: immutable copies, in the store, of what was promoted and of the evidence for it.

A release is ``releases/<sha256>/release.json``, which names every other file of the release with its digest; the digest
of the release is that of this file. Beside them lie the signatures of its model folders. A release can thus be found
and verified byte for byte after later runs have overwritten the workspace that it came from. Its folder ``candidate/``
is the artefact of stage ``calibrate``: a PEFT adapter to serve.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from filelock import FileLock
from pydantic import Field

from safegene.errors import DigestMismatch, FormatError
from safegene.ledger.store import LocalStore, ObjectMissing, Store, check_key
from safegene.workspace.atomic import draft_folder
from safegene.workspace.digest import PREFIX, canonical_json, digest_bytes, is_digest
from safegene.workspace.manifest import NAME as MANIFEST
from safegene.workspace.manifest import Manifest
from safegene.workspace.parsing import Strict, parse_json

INDEX = "release.json"
SIGNED = ("candidate", "vector")
"""Folders of a release that have a signature of their own beside them, see `safegene.ledger.model_signature`."""

Artefact = tuple[Path, Manifest]
Source = tuple[Path, str]


class Release(Strict):
    """The content of ``release.json``.

    Attributes:
        target: the target's name.
        files: path of a file below the release -> its digest.
    """

    OPTIONAL_KEYS: ClassVar[frozenset[str]] = frozenset()

    schema_: Literal["safegene/release/v1"] = Field("safegene/release/v1", alias="schema")
    target: str
    files: dict[str, str]

    @property
    def content(self) -> bytes:
        """The bytes of ``release.json``."""
        return canonical_json(self.model_dump(by_alias=True))

    @property
    def digest(self) -> str:
        """The release's digest."""
        return digest_bytes(self.content)


def release_files(whole: Mapping[str, Artefact], receipts: Mapping[str, Artefact]) -> dict[str, Source]:
    """The files of a release: path below the release -> file and digest.

    The digests come from the manifests, so `publish_release` finds a file that has changed since it was verified.

    Args:
        whole: artefact name -> folder and verified manifest, of artefacts that are copied with all their files.
        receipts: the same, of artefacts of which only the manifest is copied.
    """
    files: dict[str, Source] = {}
    for name, (folder, manifest) in {**receipts, **whole}.items():
        files[f"{name}/{MANIFEST}"] = (folder / MANIFEST, digest_bytes(manifest.content))
    for name, (folder, manifest) in whole.items():
        files |= {f"{name}/{path}": (folder / path, digest) for path, digest in manifest.files.items()}
    return files


def plan_release(target: str, files: Mapping[str, Source]) -> Release:
    """The release that consists of these files."""
    return Release(target=target, files={check_key(name): digest for name, (_, digest) in sorted(files.items())})


def publish_release(store: Store, release: Release, files: Mapping[str, Source]) -> None:
    """Copy a release into the store, ``release.json`` last; files that are there already stay.

    Raises:
        DigestMismatch: a file has changed since the release was planned.
        StoreError: the store failed.
    """
    for name, expected in release.files.items():
        path, _ = files[name]
        data = path.read_bytes()
        if (got := digest_bytes(data)) != expected:
            raise DigestMismatch(f"expected {expected}, got {got}: the file changed after it was verified, in {path}")
        store.put_if_absent(release_key(release.digest, name), data)
    store.put_if_absent(release_key(release.digest, INDEX), release.content)


def read_release(store: Store, digest: str) -> Release:
    """Read ``release.json`` and verify it against the release's digest.

    Raises:
        DigestMismatch: it is missing or changed.
        FormatError: it is malformed.
    """
    data = _get(store, digest, INDEX, expected=digest)
    release = parse_json(Release, data, where=f"{store.uri}/{release_key(digest, INDEX)}")
    for name in release.files:
        check_key(name)
    return release


def verify_release(store: Store, digest: str) -> Release:
    """Read a release and verify every file of it in the store.

    Raises:
        DigestMismatch: a file is missing, changed, or not named in ``release.json``.
    """
    release = read_release(store, digest)
    for name, expected in release.files.items():
        _get(store, digest, name, expected=expected)
    prefix, outside = release_key(digest, ""), {INDEX, *(f"{name}.sig" for name in SIGNED)}
    if extra := {key.removeprefix(prefix) for key in store.list(prefix)} - set(release.files) - outside:
        raise DigestMismatch(
            f"expected only files that {INDEX} names, got also {sorted(extra)}, in {store.uri}/{prefix}"
        )
    return release


def require_release_of(store: Store, digest: str, artefacts: Mapping[str, str]) -> Release:
    """`verify_release`, and check that the manifests in the release are those that a record names.

    Args:
        store: where the release is.
        digest: the release.
        artefacts: artefact name -> digest, from the record that put the release live.

    Raises:
        DigestMismatch: a manifest is not the one in the record, or the files of an artefact are not those in its
            manifest.
    """
    release = verify_release(store, digest)
    for name, expected in artefacts.items():
        if (key := f"{name}/{MANIFEST}") not in release.files:
            continue
        where = f"{store.uri}/{release_key(digest, key)}"
        manifest = parse_json(Manifest, _get(store, digest, key, expected=release.files[key]), where=where)
        if manifest.digest != expected:
            raise DigestMismatch(f"expected {expected}, as the record says, got {manifest.digest}, in {where}")
        inside = {
            path.removeprefix(f"{name}/"): at for path, at in release.files.items() if path.startswith(f"{name}/")
        }
        del inside[MANIFEST]
        if inside and inside != manifest.files:
            raise DigestMismatch(f"expected the files that {key} names, got others, in {where}")
    return release


def release_file(store: Store, digest: str, name: str) -> bytes:
    """One file of a release, verified.

    Raises:
        DigestMismatch: it is missing or changed, or the release has no such file.
    """
    files = read_release(store, digest).files
    if name not in files:
        raise DigestMismatch(
            f"expected the file {name}, got a release without it, in {store.uri}/{release_key(digest, INDEX)}"
        )
    return _get(store, digest, name, expected=files[name])


def release_manifests(store: Store, digest: str) -> dict[str, Manifest]:
    """Artefact name -> its manifest, of every artefact of which the release holds one, verified.

    Raises:
        DigestMismatch: a file is missing or changed.
        FormatError: a manifest is malformed.
    """
    manifests = {}
    for path, expected in read_release(store, digest).files.items():
        name, _, file = path.partition("/")
        if file == MANIFEST:
            data = _get(store, digest, path, expected=expected)
            manifests[name] = parse_json(Manifest, data, where=f"{store.uri}/{release_key(digest, path)}")
    return manifests


def open_release(store: Store, digest: str, *, cache: Path, artefacts: Mapping[str, str] | None = None) -> Path:
    """A folder that holds a verified release: its place in a local store, otherwise a copy below ``cache``.

    Args:
        store: where the release is.
        digest: the release.
        cache: folder for copies from a remote store.
        artefacts: see `require_release_of`.

    Raises:
        DigestMismatch: a file is not what the release or the record says.
    """
    recorded, key = artefacts or {}, release_key(digest, "").rstrip("/")
    if isinstance(store, LocalStore):
        require_release_of(store, digest, recorded)
        return store.root / key
    folder, copies = cache / key, LocalStore(cache)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        try:
            verify_release(copies, digest)
        except DigestMismatch:  # not downloaded yet, or damaged since
            _download(store, digest, folder)
        require_release_of(copies, digest, recorded)
    return folder


def release_uri(store: Store, digest: str) -> str:
    """The place of a release."""
    return f"{store.uri}/{release_key(digest, '')}".rstrip("/")


def _download(store: Store, digest: str, folder: Path) -> None:
    release = read_release(store, digest)
    with draft_folder(folder) as draft:
        for name, expected in {**release.files, INDEX: digest}.items():
            path = draft / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_get(store, digest, name, expected=expected))


def _get(store: Store, digest: str, name: str, *, expected: str) -> bytes:
    key = release_key(digest, name)
    try:
        data, _ = store.get(key)
    except ObjectMissing:
        raise DigestMismatch(f"expected {expected}, got no such file, in {store.uri}/{key}") from None
    if (got := digest_bytes(data)) != expected:
        raise DigestMismatch(f"expected {expected}, got {got}, in {store.uri}/{key}")
    return data


def release_key(digest: str, name: str) -> str:
    """The key of a file of a release in the store.

    Raises:
        FormatError: ``digest`` is none.
    """
    if not is_digest(digest):
        raise FormatError(f"expected a release's digest, got {digest!r}")
    return f"releases/{digest.removeprefix(PREFIX)}/{name}"
