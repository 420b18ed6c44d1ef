"""Publish the safety vector of a workspace as a bundle that other teams can verify and use.

See `safegene.ledger.bundles` for what a bundle holds; prompts are in it by digest only. The signer is a key that
``ledger.pub`` pins.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from securesystemslib.signer import Signer

from safegene.checkpoints.record import CheckpointRecord, read_record
from safegene.checkpoints.sources.uploading import upload
from safegene.checkpoints.sources.uri import parse
from safegene.datasets.contamination import text_digest
from safegene.datasets.prompts import read_prompts
from safegene.errors import DigestMismatch, ParamsError, PromotionRefused
from safegene.ledger.bundles import (
    CARD,
    INDEX,
    LIMITS,
    RECEIPTS,
    SELECTION_FILES,
    SHOTS,
    SIGNATURE,
    VECTOR_FILES,
    Bundle,
    BundleFile,
    MeasuredEffect,
    open_bundle,
    publisher_key,
    sign_bundle,
)
from safegene.ledger.chain import open_ledger
from safegene.ledger.keys import load_signer
from safegene.ledger.live import revocations, why_revoked
from safegene.ledger.trace import leaves
from safegene.pipeline.vector_card import vector_card
from safegene.report.state import read_state
from safegene.vectors.vector import read_vector
from safegene.version import __version__
from safegene.workspace.digest import canonical_json, digest_bytes, digest_file
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import NAME, Manifest, read_manifest
from safegene.workspace.staleness import data_digests, is_data, require_current

PUBLIC = ("hf", "tiny")
"""Schemes of places that a receipt may name: those of everybody."""


@dataclass(frozen=True)
class PublishedVector:
    """A vector that was published.

    Attributes:
        uri: for ``family.vector``.
        publisher: id of the key that signed it, for ``family.publisher``.
        vector: its digest.
        digest: of ``bundle.json``.
        targets: how many measured fine-tunes the card shows.
    """

    uri: str
    publisher: str
    vector: str
    digest: str
    targets: int


def publish_vector(
    workspace: Workspace, place: str, *, licence: str | None = None, disclose: bool = False
) -> PublishedVector:
    """Write the workspace's vector to a folder, an S3 prefix or a repository of the Hub, signed.

    Args:
        workspace: where the vector was made.
        place: a new folder, ``s3://BUCKET/PREFIX`` or ``hf://ORG/NAME``.
        licence: under which others may use it; by default ``record.licence`` of ``params.yaml``.
        disclose: publish receipts although they name places of one's own, such as a judge's address.

    Raises:
        ParamsError: the vector was fetched; there is no licence; a receipt names a place, and not ``disclose``.
        ArtifactError: an artefact is missing, changed, or made from something that has changed since.
        PromotionRefused: the vector, or something that it was made from, is revoked.
        LedgerError: no pinned key signs here.
        SourceError: the place has another form, holds other content, or does not answer.

    Example:
        >>> published = safegene.publish_vector(ws, "vectors/v1", licence="Apache-2.0")
        >>> published.uri.endswith("/vectors/v1")
        True
    """
    params = workspace.params
    licence = licence or params.record.licence
    if params.family.vector:
        raise ParamsError(
            f"expected a vector that was made in this workspace, got that of {params.family.vector}",
            remedy="copy the publisher's bundle as it is: its signature stays valid",
        )
    if not licence or not licence.isprintable():
        raise ParamsError(
            "expected a licence, without which nobody may use the vector, got none",
            remedy="give one: `--licence Apache-2.0`, or record.licence in params.yaml",
        )
    manifests = _verified(workspace)
    if not disclose:
        _require_no_places(manifests)
    signer = _signer(workspace, manifests)
    with tempfile.TemporaryDirectory(prefix="safegene-") as box:
        folder = Path(box)
        bundle = _write(workspace, manifests, folder, licence, signer)
        names = (*bundle.files, SIGNATURE, INDEX)
        uri = upload(folder, place, names, message=f"safegene vector {bundle.vector}")
    return PublishedVector(
        uri, str(bundle.publisher["keyid"]), bundle.vector, digest_bytes(bundle.content), len(bundle.effect)
    )


def _verified(ws: Workspace) -> dict[str, Manifest]:
    """The manifests of the family's artefacts, each made from the present others and the present prompts."""
    folders = {name: getattr(ws, name) for name in (*RECEIPTS, "vector", "selection")}
    large = ("degraded", "delta")  # they stay here, and only their manifests are published
    manifests = {name: read_manifest(folder, verify=name not in large) for name, folder in folders.items()}
    read_vector(ws.vector)
    current, data = {name: one.digest for name, one in manifests.items()}, data_digests(ws).values()
    for name, manifest in manifests.items():
        require_current(name, folders[name], manifest, current, data=data)
    for name, files in (("vector", VECTOR_FILES), ("selection", SELECTION_FILES)):
        if odd := sorted(set(manifests[name].files) ^ set(files)):
            raise DigestMismatch(
                f"expected the files {', '.join(files)}, got others ({odd[0]}), in {folders[name]}",
                remedy="run `safegene run`: an earlier version made this artefact",
            )
    return manifests


def _require_no_places(manifests: Mapping[str, Manifest]) -> None:
    for name, manifest in manifests.items():
        for place, value in leaves(manifest.model_dump(mode="json")):
            texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
            if own := [text for text in texts if "://" in text and text.partition("://")[0] not in PUBLIC]:
                raise ParamsError(
                    f"expected receipts without places of your own, got {place} = {own[0]!r} in the manifest of {name}",
                    remedy="everybody who has the bundle can read it; if that is fine: `--disclose`",
                )


def _signer(ws: Workspace, manifests: Mapping[str, Manifest]) -> Signer:
    """Who signs, if nothing that the vector rests on is revoked in the workspace's ledger."""
    ledger = open_ledger(ws.params.promote, ws.root)
    used = {digest for one in manifests.values() for digest in (one.digest, *one.inputs.values())}
    if why := why_revoked(revocations(ledger), frozenset(used)):
        raise PromotionRefused(f"expected to publish a vector that nothing revokes, got: {why}")
    return load_signer(ledger.keys)


def _write(ws: Workspace, manifests: Mapping[str, Manifest], folder: Path, licence: str, signer: Signer) -> Bundle:
    """Write every file of the bundle into ``folder``, and read it as others will."""
    for name in manifests:
        shutil.copyfile(getattr(ws, name) / NAME, folder / f"{name}-manifest.json")
    for source, files in ((ws.vector, VECTOR_FILES), (ws.selection, SELECTION_FILES)):
        for name in files:
            shutil.copyfile(source / name, folder / name)
    shots = dict(_shots(ws, manifests))
    (folder / SHOTS).write_bytes(canonical_json({name: texts for name, (_, texts) in shots.items()}) + b"\n")
    record, effect = read_record(ws.aligned), tuple(_effect(ws, manifests["vector"].digest))
    prompts, base = {name: digest for name, (digest, _) in shots.items()}, _base_model(record)
    card = vector_card(manifests, record, prompts=prompts, licence=licence, base_model=base, effect=effect)
    (folder / CARD).write_text(card, encoding="utf-8")
    bundle = Bundle(
        safegene=__version__,
        publisher=publisher_key(signer),
        licence=licence,
        base_model=base,
        aligned=record.digest,
        vector=manifests["vector"].digest,
        selection=manifests["selection"].digest,
        shots=prompts,
        effect=effect,
        files={
            name: BundleFile(sha256=digest_file(folder / name), bytes=(folder / name).stat().st_size) for name in LIMITS
        },
    )
    (folder / INDEX).write_bytes(bundle.content)
    (folder / SIGNATURE).write_bytes(signature := sign_bundle(bundle, signer))
    open_bundle(bundle.content, signature, str(bundle.publisher["keyid"]), where=str(folder))
    return bundle


def _shots(ws: Workspace, manifests: Mapping[str, Manifest]) -> Iterator[tuple[str, tuple[str, dict[str, list[str]]]]]:
    """Prompt set that the vector was made with -> its digest, and the digests of its texts and behaviours."""
    for name in sorted({name for one in manifests.values() for name in one.inputs if is_data(name)}):
        rows = read_prompts(ws.prompts / name)
        texts = {text_digest(row.prompt) for row in rows.rows}
        behaviours = {digest_bytes(row.behaviour.encode()) for row in rows.rows if row.behaviour}
        yield name, (rows.digest, {"texts": sorted(texts), "behaviours": sorted(behaviours)})


def _base_model(record: CheckpointRecord) -> str:
    """The aligned model's name where everybody can fetch it; its digest says which it is in any case."""
    place = parse(record.source)
    if place.scheme == "hf":
        return f"{place.path}@{record.fingerprint.removeprefix('commit:')}"
    return record.source if place.scheme in PUBLIC else ""


def _effect(ws: Workspace, vector: str) -> Iterator[MeasuredEffect]:
    """What was measured on each fine-tune that this vector repaired and the gate judged."""
    for target in read_state(ws).targets:
        candidate, verdict = target.artefacts["candidate"].manifest, target.verdict
        if candidate and verdict and candidate.inputs.get("vector") == vector:
            rates = {name: dict(arms) for name, arms in verdict.rates.items()}
            judge = verdict.judge.identity
            yield MeasuredEffect(target=target.name, outcome=verdict.outcome, judge=judge, rates=rates)
