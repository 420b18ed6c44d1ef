"""The evidence for a verdict: every artefact, verified byte for byte, each made from the present ones.

A verdict is accepted only if the judgements give every value of it again, under the present policy and judge, and if it
was measured against what was live.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from safegene.checkpoints.record import RECORD
from safegene.datasets.receipt import parts_digest, read_receipt
from safegene.errors import ArtifactError, DigestMismatch, StaleArtifact
from safegene.gate import VerdictFile, evidence_from, verdict_payload
from safegene.gate.decision import policy_digest
from safegene.ledger.bundles import Publication, read_publication
from safegene.ledger.incumbent import read_incumbent
from safegene.text import redact, visible
from safegene.workspace.digest import digest_bytes, digest_file, strict_json
from safegene.workspace.layout import Workspace, keys_folder
from safegene.workspace.manifest import NAME, Manifest, read_manifest
from safegene.workspace.params import GateParams, Params
from safegene.workspace.seal import KEY, is_artefact_sealed
from safegene.workspace.staleness import data_digests, require_current

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "published": ("aligned", "vector", "selection", "prompts"),
    "candidate": ("aligned", "target", "vector", "selection", "task"),
    "judgements": ("aligned", "target", "candidate", "incumbent", "validation", "prompts", "task"),
    "verdict": ("candidate", "judgements"),
}
"""Artefact -> the inputs that it must have been made from; ``incumbent`` only where there is an incumbent.json."""
SEALED = ("validation", "aligned", "published", "target", "judgements")
"""Artefacts that a pass needs a seal on, see `require_sealed`; ``published`` only where the vector was."""
MADE_ELSEWHERE = ("vector", "selection")
"""Artefacts that a publisher made from inputs of its own; ``published`` names their digests."""
SHOWN = 120  # characters of a value that an error names
OPTIONAL = ("degraded", "delta")
"""Artefacts that a workspace may lack: a family can bring its own degraded copies, and need not keep them."""


@dataclass(frozen=True)
class Evidence:
    """Every artefact behind one verdict, verified.

    Attributes:
        folders: artefact name -> folder.
        manifests: artefact name -> manifest.
        data: path of a prompt set or task set below ``data`` -> digest.
        incumbent: digest of the release that the verdict was measured against; None for none.
        publication: what the vector's publisher says; None where the vector was made here.
    """

    folders: Mapping[str, Path]
    manifests: Mapping[str, Manifest]
    data: Mapping[str, str]
    incumbent: str | None
    publication: Publication | None = None

    @property
    def digests(self) -> dict[str, str]:
        """Artefact name -> digest."""
        return {name: manifest.digest for name, manifest in self.manifests.items()}

    def payload(self, artefact: str, name: str) -> dict[str, Any]:
        """A JSON file of an artefact, as it goes into the record; {} where the artefact has no such file."""
        path = self.folders[artefact] / name
        raw = strict_json(path.read_bytes(), where=str(path)) if path.is_file() else {}
        return raw if isinstance(raw, dict) else {}


def gather_evidence(workspace: Workspace, target: str) -> Evidence:
    """Read and verify every artefact behind the target's verdict, and check that each was made from the present ones.

    Raises:
        ArtifactError: an artefact is missing or changed.
        StaleArtifact: one was made from something that has changed since, or for another target.
    """
    require_entry(workspace, target)
    folders = workspace.artefacts(target)
    needed = {name: at for name, at in folders.items() if name not in OPTIONAL or (at / NAME).is_file()}
    manifests = {name: read_manifest(at) for name, at in needed.items()}
    current = {name: manifest.digest for name, manifest in manifests.items()} | _current_files(workspace, target)
    current["validation"] = _receipt_digest(workspace, target, manifests["judgements"].inputs.get("validation"))
    data = data_digests(workspace)
    publication = publication_of(workspace)
    for name, manifest in manifests.items():
        if publication and name in MADE_ELSEWHERE:
            continue
        required = [used for used in REQUIRED.get(name, ()) if used in current or used != "incumbent"]
        require_current(name, folders[name], manifest, current, data=data.values(), required=required)
    return Evidence(folders, manifests, data, read_incumbent(workspace.incumbent(target)).live, publication)


def publication_of(workspace: Workspace) -> Publication | None:
    """What the publisher of ``family.vector`` says of it, its signature verified; None where the vector is made here.

    Raises:
        ArtifactError: the vector was not fetched, or not from there, or something has changed since.
    """
    family, folder = workspace.params.family, workspace.published
    if family.vector is None or family.publisher is None:
        return None
    publication = read_publication(folder, family.publisher)
    if publication.source != family.vector:
        raise StaleArtifact(
            f"expected the vector of {_shown(family.vector)}, got that of {_shown(publication.source)}, in {folder}",
            remedy="run `safegene run`",
        )
    inputs = read_manifest(folder).inputs
    for name, stated in (("vector", publication.bundle.vector), ("selection", publication.bundle.selection)):
        if inputs.get(name) != stated:
            raise DigestMismatch(f"expected the {name} {stated}, as the publisher says, got another, in {folder}")
    return publication


def require_entry(workspace: Workspace, target: str) -> None:
    """Check that the target's artefacts are those of its entry in ``data/targets.yaml``.

    The checkpoint must be of the entry's source and fingerprint, and was fetched under its name and for its task;
    every later artefact names the digest of the checkpoint that it was made from, or is compared with its task set
    (`REQUIRED`). So evidence that was copied from another target, whose name differs at least, is refused.

    Raises:
        ParamsError: there is no such target.
        ArtifactError: there is no checkpoint.
        StaleArtifact: an artefact is of another entry; names both.
    """
    entry, folder = workspace.require_target(target), workspace.checkpoint(target)
    entries, fetched = workspace.targets.targets, _fetched_entry(folder)
    expected = {"name": target, "source": entry.source, "fingerprint": entry.fingerprint, "task": entry.task}
    for name, value in fetched.items():
        if value != expected[name]:
            of_source = (other for other, known in entries.items() if known.source == fetched["source"])
            other = fetched.get("name") or next(of_source, "(unknown)")
            raise StaleArtifact(
                f"expected artefacts of target {target}, made for the {name} {_shown(expected[name])}, got those of "
                f"target {_shown(other)}, made for the {name} {_shown(value)}, in {folder}",
                remedy=f"`safegene run {target}` fetches what its entry names, and makes what depends on it again",
            )


def _shown(value: str) -> str:
    return visible(redact(value), characters=SHOWN) or "(none)"


def require_sealed(workspace: Workspace, evidence: Evidence, target: str) -> None:
    """Check that a holder of the cache's key made what a pass rests on: the checkpoints, the judgements, the receipt.

    The digests of a manifest bind files to each other, and say nothing about who wrote them: an artefact could be
    edited, and its manifest rewritten. Vector and candidate need no seal, as the candidate was judged as it is.

    Raises:
        StaleArtifact: an artefact was made without the key; `safegene run` makes it again.
    """
    digests = {**evidence.digests, "validation": read_manifest(workspace.validation).digest}
    for name in SEALED:
        if name in digests and not is_artefact_sealed(digests[name]):
            folder = evidence.folders.get(name, workspace.validation)
            raise StaleArtifact(
                f"expected {name} made by a holder of the key {keys_folder() / KEY}, got one that was made without it, "
                f"or edited, in {folder}",
                remedy=f"`safegene run {target}` makes it again; or share that key with the machine that made it, and "
                "its cache (SAFEGENE_CACHE)",
            )


def _fetched_entry(folder: Path) -> dict[str, str]:
    """What a checkpoint's artefact was fetched for; earlier versions noted neither name nor task."""
    manifest, path = read_manifest(folder), folder / RECORD
    record = strict_json(path.read_bytes(), where=str(path)) if path.is_file() else None
    sources = {
        name: str(record.get(name, "")) if isinstance(record, dict) else "" for name in ("source", "fingerprint")
    }
    entry = manifest.params.get("entry")
    named = {name: str(entry.get(name, "")) for name in ("name", "task")} if isinstance(entry, dict) else {}
    return {**named, **sources}


def present_artefacts(workspace: Workspace, target: str) -> dict[str, str]:
    """Artefact name -> digest, of the artefacts whose manifest can be read; their files are not verified."""
    digests = {}
    for name, folder in workspace.artefacts(target).items():
        with suppress(ArtifactError):
            digests[name] = read_manifest(folder, verify=False).digest
    return digests


def _current_files(workspace: Workspace, target: str) -> dict[str, str]:
    """Input name -> present digest, of the files that judgements depend on."""
    evaluate, incumbent = workspace.params.evaluate, workspace.incumbent(target)
    task = workspace.tasks / f"{workspace.targets.targets[target].task}.jsonl"
    digests = {"prompts": _digest_of(workspace.prompts / "gate.jsonl"), "task": _digest_of(task)}
    if incumbent.is_file():
        digests["incumbent"] = digest_file(incumbent)
    labels = {
        "calibration": evaluate.judge.calibration,
        "adjudication": evaluate.adjudicator.calibration if evaluate.adjudicator else None,
    }
    for name, file in labels.items():
        if file:
            digests[name] = _digest_of(workspace.root / file)
    return digests


def _receipt_digest(workspace: Workspace, target: str, used: str | None) -> str:
    """Digest of the present receipt's parts of the gate's and the target's task set.

    Judgements of earlier versions name the digest of the whole receipt, which stays valid while nothing in it changes.
    """
    receipt = read_receipt(workspace.validation)
    if used is not None and used == digest_bytes(receipt.content):
        return used
    return parts_digest(receipt, ("gate", f"task-{workspace.targets.targets[target].task}"))


def _digest_of(path: Path) -> str:
    return digest_file(path) if path.is_file() else f"(none in {path})"


def confirm_verdict(evidence: Evidence, params: Params) -> VerdictFile:
    """The verdict, after it was computed again from the judgements under the present policy and judge.

    Raises:
        StaleArtifact: policy or judge have changed, or the judgements give another verdict.
        FormatError, EmptySample: verdict, plan or judgements are malformed.
    """
    where, judged = evidence.folders["verdict"], evidence.manifests["judgements"]
    verdict = VerdictFile.parse((where / "verdict.json").read_bytes(), where=str(where / "verdict.json"))
    present = policy_digest(params.gate)
    if verdict.policy != present:
        raise StaleArtifact(
            f"expected a verdict under the present policy {present}, got one under {verdict.policy}, in {where}",
            remedy="run `safegene run`",
        )
    for name, value in params.evaluate.model_dump(mode="json").items():
        if (used := judged.params.get(name)) != value:
            raise StaleArtifact(
                f"expected judgements under the present evaluate.{name}, {value}, got those under {used}, "
                f"in {evidence.folders['judgements']}",
                remedy="run `safegene run`",
            )
    recomputed = _decide_again(evidence, params.gate)
    for field in fields(VerdictFile):
        expected, got = getattr(recomputed, field.name), getattr(verdict, field.name)
        if expected != got:
            raise StaleArtifact(
                f"expected {field.name} = {expected}, which the judgements give, got {got}, in {where}",
                remedy="run `safegene gate` again; if nobody changed the gate, find out who wrote this verdict",
            )
    return verdict


def _decide_again(evidence: Evidence, policy: GateParams) -> VerdictFile:
    folder = evidence.folders["judgements"]
    files = [(folder / name).read_bytes() for name in ("plan.json", "judgements.jsonl")]
    rows, plan = evidence_from(*files, where=str(folder))
    if ("incumbent" in plan.models) != (evidence.incumbent is not None):
        raise StaleArtifact(
            f"expected judgements of the live model {evidence.incumbent or '(none)'}, got those of "
            f"{sorted(plan.models)}, in {folder}",
            remedy="run `safegene run`",
        )
    verdict = verdict_payload(
        rows,
        plan,
        policy,
        candidate=evidence.digests["candidate"],
        judgements=evidence.digests["judgements"],
        extra_params=evidence.manifests["candidate"].facts.get("extra_params"),
        stopping=evidence.manifests["judgements"].facts.get("stopping"),
    )
    return VerdictFile.parse(verdict.to_bytes(), where=str(folder))
