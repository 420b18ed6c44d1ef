"""Stage ``fetch-vector``: a safety vector and its layer selection, as another team published them.

It stands in the place of ``degrade``, ``extract``, ``compress`` and ``select`` where ``family.vector`` names a bundle
(`safegene.ledger.bundles`). The two artefacts keep the publisher's bytes, and so their digests; what else the bundle
says (publisher, receipts, card) becomes the artefact ``published``.
"""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from safegene.checkpoints.record import read_record
from safegene.checkpoints.structure import read_structure
from safegene.datasets.contamination import text_digest
from safegene.datasets.prompts import Prompt, read_prompts
from safegene.errors import (
    CheckpointError,
    ContaminatedSample,
    DigestMismatch,
    FormatError,
    SafegeneError,
    StaleArtifact,
)
from safegene.ledger.bundle_source import FetchedBundle, fetch_bundle
from safegene.ledger.bundles import (
    CARD,
    INDEX,
    RECEIPTS,
    SELECTION_FILES,
    SHOTS,
    SIGNATURE,
    VECTOR_FILES,
    ShotDigests,
)
from safegene.repair.selection import read_selection, selected_matrices
from safegene.vectors.vector import read_vector
from safegene.workspace.atomic import draft_folder
from safegene.workspace.digest import digest_bytes
from safegene.workspace.fields import Positive, Share
from safegene.workspace.manifest import NAME, Manifest, read_manifest, write_artefact
from safegene.workspace.parsing import Strict, parse, parse_json

KEPT = (INDEX, SIGNATURE, CARD, SHOTS, *(f"{name}-manifest.json" for name in RECEIPTS))
MAX_PIXELS = 1 << 25
_NUMBERS = re.compile(rb"[\w.,+\-\n ]*")  # a table of names and numbers: no quotes, no markup, no formula
_FORMULA = re.compile(rb"(?:^|[,\n])[+\-](?!\d)")
_PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"


class VectorFacts(Strict):
    """The facts of a vector's manifest that reports show."""

    matrices: Positive
    numbers: Positive
    bytes: Positive
    energy: Share


class SelectionFacts(Strict):
    """The facts of a selection's manifest that reports show."""

    kept: Positive
    layers: Positive


def fetch_vector(
    uri: str,
    *,
    publisher: str,
    aligned: Path,
    prompts: Path,
    vector: Path,
    selection: Path,
    out: Path,
    pin: str | None = None,
) -> Manifest:
    """Fetch a published vector, verify every byte of it, and write it as the artefacts of ``compress`` and ``select``.

    Args:
        uri: place of the bundle: ``hf://ORG/NAME@REVISION``, ``s3://BUCKET/PREFIX`` or ``file://FOLDER``.
        publisher: id of the publisher's key.
        aligned: artefact of ``fetch``; the vector must be of this model.
        prompts: folder of the prompt sets, of which ``gate.jsonl`` must not hold what the vector was made with.
        vector: artefact to write.
        selection: artefact to write.
        out: artefact to write: what the publisher says of them.
        pin: digest of ``bundle.json`` that the place must still hold.

    Raises:
        DigestMismatch: it is of another publisher or aligned model, or a byte has changed.
        StaleArtifact: the place holds another bundle than was pinned.
        ContaminatedSample: the vector was made with a prompt of the gate.
        FormatError, ShapeMismatch, CheckpointError, UnsafeCheckpoint, SourceError: it is malformed, does not fit the
            aligned model, exceeds its limits, or cannot be had.

    Example:
        >>> manifest = safegene.fetch_vector(
        ...     published.uri, publisher=published.publisher, aligned=ws.aligned, prompts=ws.prompts,
        ...     vector=Path("theirs/vector"), selection=Path("theirs/selection"), out=Path("theirs/published"),
        ... )
        >>> manifest.facts["licence"]
        'Apache-2.0'
    """
    record, gate = read_record(aligned), read_prompts(prompts / "gate.jsonl")
    found = fetch_bundle(uri, publisher, aligned=record.digest, structure=read_structure(aligned), pin=pin)
    bundle = found.bundle
    _require_unseen(found, gate.rows, uri)
    _check_views(found)
    try:
        _place(found, vector, VECTOR_FILES, stage="compress", name="vector", digest=bundle.vector)
        _place(found, selection, SELECTION_FILES, stage="select", name="selection", digest=bundle.selection)
        _check_content(vector, selection, uri)
    except SafegeneError:
        for folder in (vector, selection):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    inputs: dict[str, Path | str] = {"aligned": aligned, "bundle": found.digest, "prompts": gate.digest}
    inputs |= {"vector": bundle.vector, "selection": bundle.selection}
    chosen = {"vector": uri, "publisher": publisher}
    with write_artefact(out, stage="fetch-vector", params=chosen, inputs=inputs) as draft:
        for name in KEPT:
            shutil.copyfile(found.root / name, draft.path / name)
        draft.facts.update(publisher=publisher, licence=bundle.licence, base_model=bundle.base_model)
    return draft.done


def _require_unseen(found: FetchedBundle, gate: Iterable[Prompt], uri: str) -> None:
    """Refuse a gate that asks what the vector was made with; only digests of those prompts are known."""
    path = found.root / SHOTS
    sets = parse_json(dict[str, ShotDigests], path.read_bytes(), where=f"{uri}/{SHOTS}")
    if set(sets) != set(found.bundle.shots):
        raise FormatError(f"expected the sets {sorted(found.bundle.shots)[:5]}, got others, in {uri}/{SHOTS}")
    texts = {digest for one in sets.values() for digest in one.texts}
    behaviours = {digest for one in sets.values() for digest in one.behaviours}
    seen = [row.id for row in gate if text_digest(row.prompt) in texts]
    seen += [row.id for row in gate if row.behaviour and digest_bytes(row.behaviour.encode()) in behaviours]
    if seen:
        more = f" and {len(seen) - 5} more" if len(seen) > 5 else ""
        raise ContaminatedSample(
            f"expected gate prompts that the vector was not made with, got {', '.join(seen[:5])}{more}, of {uri}",
            remedy="take these rows out of data/prompts/gate.jsonl",
        )


def _check_views(found: FetchedBundle) -> None:
    """Refuse tables and a picture that could do more than be looked at."""
    for name in ("energies.csv", "scores.csv"):
        data = (found.root / name).read_bytes()
        if not _NUMBERS.fullmatch(data) or _FORMULA.search(data):
            raise FormatError(f"expected a table of names and numbers, got other characters, in {found.root / name}")
    with (found.root / "scores.png").open("rb") as file:
        head = file.read(24)
    width, height = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    if not head.startswith(_PNG) or not 0 < width * height <= MAX_PIXELS:
        raise FormatError(f"expected a PNG of at most {MAX_PIXELS} pixels, got another, in {found.root / 'scores.png'}")


def _place(found: FetchedBundle, out: Path, names: tuple[str, ...], *, stage: str, name: str, digest: str) -> None:
    """Write an artefact with the publisher's bytes, and verify what was written."""
    with draft_folder(out) as draft:
        for file in names:
            shutil.copyfile(found.root / file, draft / file)
        shutil.copyfile(found.root / f"{name}-manifest.json", draft / NAME)
        manifest = read_manifest(draft, stage=stage)
        if manifest.digest != digest or manifest.content != (draft / NAME).read_bytes():
            raise DigestMismatch(f"expected the {name} {digest}, as {INDEX} says, got {manifest.digest}")
        parse(VectorFacts if name == "vector" else SelectionFacts, manifest.facts, where=f"facts of the {name}")


def _check_content(vector: Path, selection: Path, uri: str) -> None:
    """Read both as calibration will; a selection is of this vector."""
    if read_manifest(selection).inputs.get("vector") != read_manifest(vector).digest:
        raise StaleArtifact(f"expected a selection that was made from the vector beside it, got another, in {uri}")
    scores = read_selection(selection).scores
    if not all(layer.isdecimal() and len(layer) <= 6 for layer in scores):
        raise CheckpointError(f"expected scores by layer, got {list(scores)[:3]}, in {uri}")
    selected_matrices(read_vector(vector), selection)
