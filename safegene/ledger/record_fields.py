"""What the fields of a new record hold (see `safegene.ledger.record.Predicate`)."""

import getpass
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from safegene.gate import VerdictFile
from safegene.gate.floors import FLOORS
from safegene.ledger.attempts import candidate_weights
from safegene.ledger.compute import compute_field
from safegene.ledger.evidence import OPTIONAL, Evidence
from safegene.ledger.record import Record
from safegene.text import redact_text
from safegene.version import __version__
from safegene.workspace.digest import digest_json
from safegene.workspace.git import config_value, head_commit
from safegene.workspace.layout import Workspace
from safegene.workspace.plain_yaml import load_yaml

Run = Mapping[str, str]
"""What is known of a run: ``run_id``, ``trigger``, ``start``, ``git_commit`` (the commit that it started from)."""


@dataclass(frozen=True)
class Stated:
    """What a person states for the record of an attempt; it is signed with the record, and nothing checks it.

    Attributes:
        responsible: the responsible person; None for the user of Git.
        change: what changed since the last release.
        incident: link to the incident that the attempt answers.
    """

    responsible: str | None = None
    change: str | None = None
    incident: str | None = None


def evidence_fields(
    evidence: Evidence,
    verdict: VerdictFile,
    workspace: Workspace,
    target: str,
    run: Run,
    stated: Stated = Stated(),  # noqa: B008  (it is frozen)
    before: Record | None = None,
) -> dict[str, Any]:
    """All fields of the record of an attempt with complete evidence, except ``chain`` and ``channel``.

    ``before`` is the target's newest record so far; None where there is none.
    """
    plan, digests = evidence.payload("judgements", "plan.json"), evidence.digests
    not_passed = [endpoint.name for endpoint in verdict.endpoints if endpoint.outcome != "pass"]
    content = verdict.to_json()
    return {
        "model": {"artefact": digests["target"], **evidence.payload("target", "checkpoint.json")},
        "base": {"artefact": digests["aligned"], **evidence.payload("aligned", "checkpoint.json")},
        "vector": _vector_field(evidence),
        "datasets": dict(evidence.data),
        "suite": {
            "suites": plan.get("suites", {}),
            "decoding": plan.get("decoding", {}),
            "prompts": len(plan.get("prompts", ())),
        },
        "judge": content["judge"],
        "rates": content["rates"],
        "policy": {
            "digest": verdict.policy,
            "params": workspace.params.gate.model_dump(mode="json"),
            "floors": asdict(FLOORS),
        },
        "replies": {"digest": digests["judgements"], "place": "the release's folder judgements/"},
        "verdict": {"digest": digests["verdict"], "outcome": verdict.outcome, "not_passed": not_passed},
        "approval": {"not_recorded": "the promotion needs one signature"},
        "code": code_field(workspace, target, run),
        "run": {**run_field(run), "end": now()},
        "security": {"verified": sorted(digests), "chain": "each made from the present others"},
        "compute": compute_field(evidence, workspace.params, before.predicate.compute if before else None),
        **stated_fields(workspace, stated),
    }


def stated_fields(workspace: Workspace, stated: Stated) -> dict[str, Any]:
    """Fields that people state: ``responsible``, ``use``, ``change``, ``risks``, ``incident`` and ``retention``."""
    said = workspace.params.record
    name, address = (config_value(workspace.root, f"user.{key}") for key in ("name", "email"))
    git_user = f"{name} <{address}>" if name and address else ""
    person = stated.responsible or git_user
    use = {"intended_use": said.use, "limits": list(said.limits), "licence": said.licence}
    return {
        "responsible": {
            "person": person,
            "date": now()[:10],
            "stated_by": "--responsible" if stated.responsible else "Git's user.name and user.email",
        }
        if person
        else {"not_recorded": "neither --responsible nor Git's user.name and user.email name a person"},
        "use": {name: value for name, value in use.items() if value}
        or {"not_recorded": "params.yaml states no record.use, record.limits or record.licence"},
        "change": {"class": "candidate", "summary": stated.change}
        if stated.change
        else {"class": "candidate", "summary": {"not_recorded": "no --change given"}},
        "risks": {"mitigated": list(said.risks)}
        if said.risks
        else {"not_recorded": "params.yaml states no record.risks"},
        "incident": {"link": stated.incident} if stated.incident else {"not_recorded": "none linked (--incident)"},
        "retention": {"class": said.retention}
        if said.retention
        else {"not_recorded": "params.yaml states no record.retention"},
    }


def _vector_field(evidence: Evidence) -> dict[str, Any]:
    candidate, publication = evidence.manifests["candidate"], evidence.publication
    manifests = {**(publication.receipts if publication else {}), **evidence.manifests}
    recipe, made_from = (*OPTIONAL, "vector"), (*OPTIONAL, "vector", "selection")
    return {
        "digest": evidence.digests["vector"],
        "recipe": {name: dict(manifest.params) for name, manifest in manifests.items() if name in recipe},
        "layers": evidence.payload("selection", "selection.json").get("kept", []),
        "coefficients": candidate.files.get("coefficients.json", ""),
        "candidate_weights": candidate_weights(candidate),
        "made_from": {name: dict(manifest.inputs) for name, manifest in manifests.items() if name in made_from},
        "calibration": {"params": dict(candidate.params), "facts": dict(candidate.facts)},
        **({"publisher": publication.to_json()} if publication else {}),
    }


def run_field(run: Run | None) -> dict[str, str]:
    """Field ``run``: who started the attempt, where and when."""
    try:
        actor = getpass.getuser()
    except (KeyError, OSError):
        actor = "unknown"
    known = {"trigger": "manual", "actor": actor, "host": platform.node(), "start": now()}
    return {**known, **{name: redact_text(value) for name, value in (run or {}).items() if name != "git_commit"}}


def code_field(workspace: Workspace, target: str, run: Run | None) -> dict[str, Any]:
    """Field ``code``: versions and commit; ``dvc_lock`` is the digest of this target's entries in ``dvc.lock``."""
    commit = (run or {}).get("git_commit") or head_commit(workspace.root)
    lock = workspace.root / "dvc.lock"
    stages = (load_yaml(lock) or {}).get("stages", {}) if lock.is_file() else {}
    upstream = {name: entry for name, entry in stages.items() if name.partition("@")[2] in ("", target)}
    return {
        "safegene": __version__,
        "git_commit": commit or {"not_recorded": "the workspace has no commit"},
        "dvc_lock": digest_json(upstream) if upstream else {"not_recorded": "DVC has not run these stages"},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def now() -> str:
    """The present time in UTC, to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
