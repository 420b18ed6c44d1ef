"""The evidence behind a verdict: every artefact, verified byte for byte, each made from the present others.

A verdict is believed only if the recorded judgements give all of it again, under the present policy and judge, measured
against what was live.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safegene.datasets.receipt import validated_receipt
from safegene.errors import FormatError, StaleArtifact
from safegene.gate import evidence_from, verdict_payload
from safegene.gate.decision import policy_digest
from safegene.workspace.digest import canonical_json, digest_file, strict_json
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import NAME, Manifest, read_manifest
from safegene.workspace.params import GateParams, Params

MADE_FROM: Mapping[str, tuple[str, ...]] = {  # where there is an incumbent.json, judgements are made from it too
    "candidate": ("aligned", "target", "vector", "selection"),
    "judgements": ("aligned", "target", "candidate", "incumbent", "validation"),
    "verdict": ("candidate", "judgements"),
}
OPTIONAL = ("degraded", "delta")  # a family may bring its own degraded copies, and need not keep them
RECORDED_ASIDE = ("incumbent",)  # an input where there is one


@dataclass(frozen=True)
class Evidence:
    """Every artefact behind one verdict, verified: its folders and its manifests, by name."""

    folders: Mapping[str, Path]
    manifests: Mapping[str, Manifest]
    data: Mapping[str, str]
    incumbent: str | None

    @property
    def digests(self) -> dict[str, str]:
        """Artefact name -> digest."""
        return {name: manifest.digest for name, manifest in self.manifests.items()}

    def payload(self, artefact: str, name: str) -> dict[str, Any]:
        """A JSON payload; {} where the artefact has none of that name."""
        path = self.folders[artefact] / name
        raw = strict_json(path.read_bytes(), where=str(path)) if path.is_file() else {}
        return raw if isinstance(raw, dict) else {}


def gather_evidence(workspace: Workspace, target: str) -> Evidence:
    """Read and verify every artefact behind the target's verdict, and that each was made from the present ones.

    Raises:
        ArtifactError: one is absent or altered.
        StaleArtifact: one was made from something that has changed since.
    """
    folders = workspace.artefacts(target)
    needed = {name: at for name, at in folders.items() if name not in OPTIONAL or (at / NAME).is_file()}
    manifests = {name: read_manifest(at) for name, at in needed.items()}
    incumbent, receipt = workspace.incumbent(target), workspace.validation
    current = {name: manifest.digest for name, manifest in manifests.items()}
    current["validation"] = validated_receipt(receipt)
    if incumbent.is_file():
        current["incumbent"] = digest_file(incumbent)
    if calibration := workspace.params.evaluate.judge.calibration:
        path = workspace.root / calibration
        current["calibration"] = digest_file(path) if path.is_file() else f"(none in {path})"
    second = workspace.params.evaluate.adjudicator
    if second and second.calibration:
        path = workspace.root / second.calibration
        current["adjudication"] = digest_file(path) if path.is_file() else f"(none in {path})"
    data = data_digests(workspace)
    for name, manifest in manifests.items():
        _require_current(name, folders[name], manifest, current, set(data.values()))
    return Evidence(folders, manifests, data, _pinned(incumbent))


def confirm_verdict(
    evidence: Evidence, verdict: Mapping[str, Any], params: Params
) -> Literal["pass", "fail", "inconclusive"]:
    """The verdict's outcome, if it is by the present policy and judge and the judgements give all of it again.

    Raises:
        StaleArtifact: it is not, or they do not.
        FormatError, EmptySample: plan or judgements are malformed.
    """
    where, judged = evidence.folders["verdict"], evidence.manifests["judgements"]
    present = policy_digest(params.gate)
    if (used := verdict.get("policy")) != present:
        raise StaleArtifact(
            f"expected a verdict under the present policy {present}, got one under {used}, in {where}",
            remedy="run `safegene run`",
        )
    for name, value in params.evaluate.model_dump(mode="json").items():
        if (was := judged.params.get(name)) != value:
            raise StaleArtifact(
                f"expected judgements under the present evaluate.{name}, {value}, got those under {was}, "
                f"in {evidence.folders['judgements']}",
                remedy="run `safegene run`",
            )
    again = _decided(evidence, params.gate)
    if changed := sorted(name for name in {*again, *verdict} if again.get(name) != verdict.get(name)):
        name = changed[0]
        raise StaleArtifact(
            f"expected {name} = {again.get(name)}, which the judgements give, got {verdict.get(name)}, in {where}",
            remedy="run `safegene gate` again, and find out who wrote that verdict",
        )
    outcome: Literal["pass", "fail", "inconclusive"] = again["outcome"]
    return outcome


def _decided(evidence: Evidence, policy: GateParams) -> dict[str, Any]:
    """``verdict.json`` as the recorded judgements give it, as plain JSON values."""
    folder = evidence.folders["judgements"]
    files = [(folder / name).read_bytes() for name in ("plan.json", "judgements.jsonl")]
    rows, plan = evidence_from(*files, where=str(folder))
    if ("incumbent" in plan.models) != (evidence.incumbent is not None):
        raise StaleArtifact(
            f"expected judgements of the live model {evidence.incumbent or '(none)'}, got those of "
            f"{sorted(plan.models)}, in {folder}",
            remedy="run `safegene run`",
        )
    payload = verdict_payload(
        rows,
        plan,
        policy,
        candidate=evidence.digests["candidate"],
        judgements=evidence.digests["judgements"],
        extra_params=evidence.manifests["candidate"].facts.get("extra_params"),
        stopping=evidence.manifests["judgements"].facts.get("stopping"),
    )
    return dict(strict_json(canonical_json(payload), where=str(folder)))


def _require_current(name: str, folder: Path, manifest: Manifest, current: Mapping[str, str], data: set[str]) -> None:
    needed = [one for one in MADE_FROM.get(name, ()) if one in current or one not in RECORDED_ASIDE]
    missing = [one for one in needed if current[one] not in manifest.inputs.values()]
    changed = [one for one, used in manifest.inputs.items() if current.get(one, used) != used]
    sets = [one for one, used in manifest.inputs.items() if is_data(one) and used not in data]
    if stale := sorted({*missing, *changed, *sets}):
        raise StaleArtifact(
            f"expected {name} made from the present {', '.join(stale)}, got one made from others, in {folder}",
            remedy="run `safegene run`, which makes again what has changed",
        )


def is_data(name: str) -> bool:
    """Whether an input of a stage is a prompt or task set."""
    return name in ("prompts", "task") or name.endswith(".jsonl")


def data_digests(workspace: Workspace) -> dict[str, str]:
    """Every prompt and task set: path below ``data`` -> digest."""
    files = [*sorted(workspace.prompts.glob("*.jsonl")), *sorted(workspace.tasks.glob("*.jsonl"))]
    return {path.relative_to(workspace.data).as_posix(): digest_file(path) for path in files}


def _pinned(path: Path) -> str | None:
    if not path.is_file():
        return None
    raw = strict_json(path.read_bytes(), where=str(path))
    if not isinstance(raw, dict) or "live" not in raw:
        raise FormatError(f"expected the key 'live', got another form, in {path}")
    return raw["live"]  # type: ignore[no-any-return]
