"""Published safety vectors: a bundle that another team verifies and uses. This docstring is its specification.

1. A bundle is a folder, an S3 prefix or a repository of the Hub, whose files lie at its top. A reader MUST open no
   file that ``bundle.json`` does not name, except ``bundle.json`` and ``bundle.sig``.
2. ``bundle.json`` MUST be canonical JSON and one newline with the keys of `Bundle`. ``files`` MUST name exactly the
   files of `LIMITS`, each with its sha256 and its size in bytes, which MUST NOT exceed the limit.
3. ``bundle.sig`` MUST be a signature, in the format of OpenSSF Model Signing, by the key in ``publisher`` of the
   folder ``vector`` with ``bundle.json`` and every file that it names.
4. A file of the artefacts ``vector`` and ``selection`` keeps its name; ``NAME-manifest.json`` MUST be the manifest of
   artefact NAME. Those of ``aligned``, ``degraded`` and ``delta`` are receipts: the artefacts themselves stay with the
   publisher. ``vector`` and ``selection`` MUST be the digests of their manifests.
5. ``aligned`` MUST be the digest of the files of the aligned model. The vector MUST NOT be used with another one.
6. ``shots.json`` MUST name, for each prompt set that the vector was made with, the sha256 of every prompt (in UTF-8,
   after `safegene.datasets.contamination.normalised`) and of every behaviour id: nobody's gate may ask one of them.
7. A reader MUST be told the id of the publisher's key by its user, and MUST refuse a bundle of any other key. It MUST
   check sizes before it reads, and digests before it uses anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints, model_validator
from securesystemslib.signer import Signer, SSlibKey

from safegene.errors import DigestMismatch, FormatError, LedgerError
from safegene.gate import Rate, VerdictOutcome
from safegene.ledger.model_signature import sign_files, verify_files
from safegene.ledger.pins import key_to_json, parse_key
from safegene.ledger.record import Record
from safegene.ledger.release import release_file
from safegene.ledger.store import Store
from safegene.ledger.trust import key_digest
from safegene.text import visible
from safegene.workspace.digest import PREFIX, canonical_json, digest_bytes, strict_json
from safegene.workspace.fields import Digest, Name, Positive
from safegene.workspace.manifest import Manifest, read_manifest
from safegene.workspace.parsing import Strict, parse, parse_json

INDEX, SIGNATURE, CARD, SHOTS = "bundle.json", "bundle.sig", "README.md", "shots.json"
HEADER, TENSORS = "vector.json", "vector.safetensors"  # of `safegene.vectors.vector`, whose import loads torch
VECTOR_FILES = (HEADER, TENSORS, "energies.csv")
SELECTION_FILES = ("selection.json", "scores.csv", "scores.png")
RECEIPTS = ("aligned", "degraded", "delta")
SIGNED_AS = "vector"
MIB = 1 << 20
LIMITS: Mapping[str, int] = {
    **{f"{name}-manifest.json": 16 * MIB for name in (*RECEIPTS, "vector", "selection")},
    HEADER: 64 * MIB,
    TENSORS: 1 << 40,  # and what the header and the aligned model's matrices allow
    "energies.csv": 64 * MIB,
    "selection.json": MIB,
    "scores.csv": MIB,
    "scores.png": 8 * MIB,
    SHOTS: 64 * MIB,
    CARD: MIB,
}
"""File -> the most bytes that it may have."""
OUTSIDE: Mapping[str, int] = {INDEX: MIB, SIGNATURE: MIB}
"""The files that the index does not name."""
Line = Annotated[str, StringConstraints(min_length=1, max_length=300)]


class BundleFile(Strict):
    """A file of a bundle: its digest, and its size in bytes."""

    sha256: Digest
    bytes: Positive


class MeasuredEffect(Strict):
    """What the vector did for one fine-tune of the publisher's.

    Attributes:
        target: the fine-tune's name.
        outcome: of its verdict.
        judge: identity of the judge.
        rates: rate -> arm -> rate with its interval and counts, as in a verdict.
    """

    target: Name
    outcome: VerdictOutcome
    judge: Line
    rates: dict[Name, dict[Name, Rate]]


class Bundle(Strict):
    """The content of ``bundle.json``.

    Attributes:
        specification: of the vector's format.
        safegene: the version that wrote the bundle.
        publisher: the publisher's public key, as an entry of ``ledger.pub``.
        licence: under which the vector may be used.
        base_model: name of the aligned model; "" where its source is a place of the publisher's own.
        aligned: see rule 5.
        vector: digest of the artefact.
        selection: digest of the artefact.
        shots: prompt set that the vector was made with -> its digest.
        effect: what was measured with the vector.
        files: see rule 2.
    """

    OPTIONAL_KEYS: ClassVar[frozenset[str]] = frozenset()

    schema_: Literal["safegene/vector-bundle/v1"] = Field("safegene/vector-bundle/v1", alias="schema")
    specification: Literal["safegene/vector/v1"] = "safegene/vector/v1"
    safegene: Line
    publisher: dict[str, Any]
    licence: Line
    base_model: Annotated[str, StringConstraints(max_length=300)]
    aligned: Digest
    vector: Digest
    selection: Digest
    shots: dict[Line, Digest]
    effect: tuple[MeasuredEffect, ...]
    files: dict[str, BundleFile]

    @model_validator(mode="after")
    def _files_are_those_of_a_bundle(self) -> "Bundle":
        if odd := sorted(set(self.files) ^ set(LIMITS)):
            raise ValueError(f"expected the files {', '.join(LIMITS)}, got others: {odd[:3]}")
        if large := [name for name, limit in LIMITS.items() if self.files[name].bytes > limit]:
            raise ValueError(f"expected at most {LIMITS[large[0]]} bytes, got more of {large[0]}")
        return self

    @property
    def content(self) -> bytes:
        """The bytes of ``bundle.json``."""
        return canonical_json(self.model_dump(mode="json", by_alias=True)) + b"\n"

    @property
    def digests(self) -> dict[str, str]:
        """File -> digest, ``bundle.json`` among them: what is signed."""
        return {INDEX: digest_bytes(self.content), **{name: file.sha256 for name, file in self.files.items()}}


class ShotDigests(Strict):
    """One prompt set in ``shots.json``: the digests of its texts and behaviour ids, each sorted."""

    texts: tuple[Digest, ...]
    behaviours: tuple[Digest, ...]


def publisher_key(signer: Signer) -> dict[str, Any]:
    """The public key of a signer, for ``publisher``: under the id that follows from the key, without its owner."""
    key = signer.public_key
    return key_to_json(SSlibKey(key_id(key), key.keytype, key.scheme, key.keyval))


def key_id(key: SSlibKey) -> str:
    """The id that follows from the key itself, whatever id a file gives it."""
    return str(SSlibKey.from_crypto(key._crypto_key()).keyid)


def sign_bundle(bundle: Bundle, signer: Signer) -> bytes:
    """The content of ``bundle.sig``."""
    return sign_files(SIGNED_AS, bundle.digests, signer, keyid=str(bundle.publisher["keyid"]))


def open_bundle(data: bytes, signature: bytes, publisher: str | None, *, where: str) -> Bundle:
    """Parse ``bundle.json``, and verify that the pinned publisher signed it with every file that it names.

    Args:
        data: its bytes.
        signature: the bytes of ``bundle.sig``.
        publisher: id of the publisher's key, as ``family.publisher`` pins it; None to look at a bundle of anybody
            before a key is pinned: then the signature is verified with the key that the bundle names.
        where: the bundle's place, for messages.

    Raises:
        FormatError: it is malformed.
        DigestMismatch: it is of another publisher, or its signature does not verify.
    """
    value = strict_json(data, where=f"{where}/{INDEX}")
    bundle = parse(Bundle, value, where=f"{where}/{INDEX}")
    if bundle.content != data:
        raise FormatError(f"expected canonical JSON and one newline, got other bytes, in {where}/{INDEX}")
    try:
        key = parse_key(bundle.publisher, where=f"{where}/{INDEX}")
        got = key_id(key)
    except (LedgerError, ValueError) as error:
        raise FormatError(f"expected the publisher's public key, got {error}, in {where}/{INDEX}") from None
    expected = got if publisher is None else publisher
    pinned = "," if publisher is None else ", as family.publisher says,"
    if got != expected or key.keyid != got:
        raise DigestMismatch(
            f"expected a vector of the publisher {expected}{pinned} got one of "
            f"{visible(got if got != expected else key.keyid, characters=64)}, in {where}",
            remedy="ask the publisher for the id of its key, by a way that you trust, before you pin another one in "
            "params.yaml",
        )
    verify_files(signature, SIGNED_AS, bundle.digests, [key], where=f"{where}/{SIGNATURE}")
    return bundle


@dataclass(frozen=True)
class Publication:
    """What the artefact ``published`` says of a fetched vector.

    Attributes:
        bundle: the index, whose signature was verified.
        digest: of ``bundle.json``.
        publisher: id of the publisher's key.
        source: the place that it was fetched from.
        receipts: artefact that stayed with the publisher -> its manifest.
    """

    bundle: Bundle
    digest: str
    publisher: str
    source: str
    receipts: Mapping[str, Manifest]

    def to_json(self) -> dict[str, str]:
        """What a record says of the publisher; revoking the key's digest revokes what rests on it."""
        named = {"key": key_digest(self.publisher), "source": self.source, "bundle": self.digest}
        return {**named, "licence": self.bundle.licence}


def read_publication(folder: Path, publisher: str) -> Publication:
    """Read an artefact of ``fetch-vector``, and verify the pinned publisher's signature again.

    Raises:
        ArtifactError: there is no such artefact.
        FormatError, DigestMismatch: it is malformed, a byte has changed, or it is of another publisher.
    """
    manifest, where = read_manifest(folder, stage="fetch-vector"), str(folder)
    data = (folder / INDEX).read_bytes()
    bundle = open_bundle(data, (folder / SIGNATURE).read_bytes(), publisher, where=where)
    receipts = {}
    for name in RECEIPTS:
        file = f"{name}-manifest.json"
        if (got := manifest.files.get(file)) != (expected := bundle.files[file].sha256):
            raise DigestMismatch(f"expected {file} with {expected}, as {INDEX} says, got {got}, in {where}")
        receipts[name] = parse_json(Manifest, (folder / file).read_bytes(), where=f"{where}/{file}")
    return Publication(bundle, digest_bytes(data), publisher, str(manifest.params.get("vector", "")), receipts)


def verify_publication(store: Store, record: Record) -> str | None:
    """Verify, in the release that a record put live, that its vector's publisher signed it.

    Returns:
        Id of the publisher's key; None where the vector was made in the workspace.

    Raises:
        DigestMismatch, FormatError: the bundle is missing, changed, of another publisher, or of another vector.
    """
    named = record.predicate.vector.get("publisher")
    if record.release is None or not isinstance(named, Mapping):
        return None
    where, keyid = f"release {record.release}", str(named.get("key", "")).removeprefix(PREFIX)
    index, signature = (release_file(store, record.release, f"published/{name}") for name in (INDEX, SIGNATURE))
    bundle = open_bundle(index, signature, keyid, where=where)
    for name, stated in (("vector", bundle.vector), ("selection", bundle.selection)):
        if (got := record.artefacts.get(name)) != stated:
            raise DigestMismatch(f"expected the {name} {stated}, as the publisher says, got {got}, in {where}")
    return keyid
