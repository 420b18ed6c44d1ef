"""Fetching a published vector: everything that a stranger's place holds is checked before it is used.

The index and its signature are read first, then the small files, and the tensors last, when it is known how large the
aligned model lets them be. The copy lies in the cache under the digest of its content, and is verified at each use.
"""

import logging
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from safegene.checkpoints.header import MAX_HEADER
from safegene.checkpoints.header import read_header as read_tensor_header
from safegene.checkpoints.sources import cache
from safegene.checkpoints.sources.uri import Source, open_source, parse
from safegene.checkpoints.structure import Structure
from safegene.errors import DigestMismatch, SafegeneError, ShapeMismatch, SourceError, StaleArtifact, UnsafeCheckpoint
from safegene.ledger.bundles import INDEX, OUTSIDE, SIGNATURE, Bundle, open_bundle
from safegene.text import redact, visible
from safegene.vectors.vector import HEADER, TENSORS, VectorHeader, read_vector_header
from safegene.workspace.digest import digest_bytes, digest_file, digest_json
from safegene.workspace.layout import cache_folder

BYTES = {"float32": 4, "bfloat16": 2}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FetchedBundle:
    """A bundle whose files are verified.

    Attributes:
        root: the folder of its files, in the cache.
        bundle: its index.
        digest: of ``bundle.json``: what ``data/targets.yaml`` pins, as it names every other file.
    """

    root: Path
    bundle: Bundle
    digest: str


def bundle_fingerprint(uri: str, publisher: str) -> str:
    """Digest of the ``bundle.json`` that a place holds now, signed by the pinned publisher.

    Raises:
        SourceError: there is no bundle, or its place does not answer.
        FormatError, DigestMismatch: it is malformed, or not of this publisher.
    """
    return _read_index(_Place(uri), publisher).digest


def look_at_bundle(uri: str) -> tuple[Bundle, str]:
    """The index of a bundle of anybody, and its digest; nothing but index and signature is read.

    Its signature fits the key that the index names, which says nothing of whose key that is.

    Raises:
        SourceError: there is no bundle, or its place does not answer.
        FormatError, DigestMismatch: it is malformed, or its signature does not fit.
    """
    index = _read_index(_Place(uri), None)
    return index.bundle, index.digest


def fetch_bundle(
    uri: str, publisher: str, *, aligned: str, structure: Structure, pin: str | None = None
) -> FetchedBundle:
    """A verified copy of a bundle.

    Args:
        uri: its place: ``file://``, ``s3://``, ``hf://``, or a plug-in's.
        publisher: id of the publisher's key.
        aligned: digest of the aligned model's files, which must be the bundle's.
        structure: of the aligned model, whose matrices the vector changes.
        pin: digest of ``bundle.json`` that the place must still hold; None takes what it holds now.

    Raises:
        SourceError: there is no bundle, a file has another size than the index says, or its place does not answer.
        DigestMismatch: it is not of this publisher, of another aligned model, or a byte has changed.
        FormatError: it is malformed.
        StaleArtifact: its place holds another bundle than was pinned.
        ShapeMismatch: it changes matrices that the aligned model does not have.
        UnsafeCheckpoint: its tensors exceed their limits.
    """
    place = _Place(uri)
    index = _read_index(place, publisher)
    if pin and index.digest != pin:
        raise StaleArtifact(
            f"expected the bundle {pin}, as data/targets.yaml pins it, got {index.digest}, in {place.where}",
            remedy="the publisher replaced it: `safegene watch` follows; or name the revision that you want in "
            "family.vector",
        )
    if index.bundle.aligned != aligned:
        named = f" ({index.bundle.base_model})" if index.bundle.base_model else ""
        raise DigestMismatch(
            f"expected a vector of the aligned model {aligned}, got one of {index.bundle.aligned}{named}, in "
            f"{place.where}",
            remedy="set family.aligned to the model that the vector was made from: it fits no other",
        )
    files = {**index.bundle.digests, SIGNATURE: digest_bytes(index.signature)}
    home = cache.cached_folder(digest_json(files))
    download = cache.download_folder(uri, index.digest)
    download.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{download}.lock"):
        if not cache.is_intact(home, files):
            try:
                home = _download(place, download, index, files, structure)
            except SourceError:  # a place that does not answer: the download resumes
                raise
            except SafegeneError:
                shutil.rmtree(download, ignore_errors=True)
                raise
    return FetchedBundle(home, index.bundle, index.digest)


class _Place:
    """Where a bundle lies, and what is there."""

    def __init__(self, uri: str) -> None:
        self.where = redact(uri)
        self.source: Source = open_source(parse(uri))
        self.sizes: Mapping[str, int] = self.source.sizes()

    def copy(self, name: str, into: Path, most: int) -> Path:
        """Copy a file of at most ``most`` bytes."""
        size = self.sizes.get(name)
        if size is None:
            raise SourceError(f"expected a published vector with {name}, got {_listed(self.sizes)}, in {self.where}")
        if size > most:
            raise SourceError(f"expected at most {most} bytes of {name}, got {size}, in {self.where}")
        self.source.copy((name,), into)
        path = into / name
        if not cache.may_be_read(path) or path.stat().st_size > most:
            raise SourceError(f"expected {name} as a file of at most {most} bytes, got another, in {self.where}")
        return path


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(visible, sorted(names)[:5])) or "no files"


@dataclass(frozen=True)
class _Index:
    """A verified ``bundle.json``, its bytes, and those of its signature."""

    bundle: Bundle
    data: bytes
    signature: bytes

    @property
    def digest(self) -> str:
        return digest_bytes(self.data)


def _read_index(place: _Place, publisher: str | None) -> _Index:
    with tempfile.TemporaryDirectory(prefix="safegene-") as box:
        data, signature = (place.copy(name, Path(box), most).read_bytes() for name, most in OUTSIDE.items())
    return _Index(open_bundle(data, signature, publisher, where=place.where), data, signature)


def _download(place: _Place, into: Path, index: _Index, files: Mapping[str, str], structure: Structure) -> Path:
    """Copy and verify the files that the index names, and move them to their place in the cache."""
    bundle = index.bundle
    into.mkdir(exist_ok=True)
    (into / INDEX).write_bytes(index.data)
    (into / SIGNATURE).write_bytes(index.signature)
    for name, file in bundle.files.items():
        if name != TENSORS:
            _fetch(place, into, name, file.sha256, file.bytes)
    header = read_vector_header(into / HEADER)
    if header.aligned != bundle.aligned:
        raise DigestMismatch(f"expected {HEADER} of {bundle.aligned}, got {header.aligned}, in {place.where}")
    most = _size_of_tensors(header, structure, place.where) + 8 + MAX_HEADER
    stated = bundle.files[TENSORS]
    if stated.bytes > most:
        raise UnsafeCheckpoint(f"expected at most {most} bytes of {TENSORS}, got {stated.bytes}, in {place.where}")
    _require_room(stated.bytes, place.where)
    log.info("%s: %s, %.1f MB", place.where, TENSORS, stated.bytes / 1e6)
    _check_tensors(_fetch(place, into, TENSORS, stated.sha256, stated.bytes), header)
    for path in into.iterdir():  # files of a library
        if path.name not in files:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return cache.store_download(into, files)


def _fetch(place: _Place, into: Path, name: str, digest: str, size: int) -> Path:
    if place.sizes.get(name) != size:
        got = f"{place.sizes[name]} bytes" if name in place.sizes else "no such file"
        raise DigestMismatch(f"expected {size} bytes of {name}, as {INDEX} says, got {got}, in {place.where}")
    path = place.copy(name, into, size)
    if (got := digest_file(path)) != digest:
        raise DigestMismatch(
            f"expected {name} with {digest}, as {INDEX} says, got {got}, in {place.where}",
            remedy="it was changed after it was signed, or the download was damaged: run again, or tell the publisher",
        )
    return path


def _size_of_tensors(header: VectorHeader, structure: Structure, where: str) -> int:
    """Bytes of the factors; each must be of a matrix of the aligned model, with its shape."""
    total = 0
    for name, entry in header.matrices.items():
        matrix = structure.matrices.get(name)
        if matrix is None or matrix.shape != entry.shape:
            got = f"{entry.shape}" if matrix is None else f"{entry.shape} instead of {matrix.shape}"
            raise ShapeMismatch(f"expected matrices of the aligned model, got {name} with {got}, in {where}/{HEADER}")
        total += entry.rank * sum(entry.shape) * BYTES[header.dtype]
    return total


def _check_tensors(path: Path, header: VectorHeader) -> None:
    """Check names and shapes in the strict reader, before a library opens the file."""
    stored = {name: spec.shape for name, spec in read_tensor_header(path).items()}
    stated = dict[str, tuple[int, ...]]()
    for name, entry in header.matrices.items():
        (rows, columns), rank = entry.shape, entry.rank
        stated |= {f"{name}.up": (rows, rank), f"{name}.down": (rank, columns)}
    if stored != stated:
        odd = sorted(name for name in stored.keys() | stated.keys() if stored.get(name) != stated.get(name))
        raise ShapeMismatch(f"expected the tensors of {HEADER}, got others for {odd[:3]}, in {path.name}")


def _require_room(size: int, where: str) -> None:
    free = shutil.disk_usage(cache_folder()).free
    if size > free:
        raise SourceError(
            f"expected {size} bytes free in the cache, got {free}, for {where}",
            remedy="free some space, or set SAFEGENE_CACHE to a folder on a larger disk",
        )
