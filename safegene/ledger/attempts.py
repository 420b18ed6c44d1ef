"""How often a fine-tune was tried: its candidates on record, by content, under whatever name and parameters.

Each further candidate of one fine-tune may spend less of alpha (`safegene.gate.decision.level_share`). A fine-tune is
known by the digests of its weights files: another target name, channel, safety vector or policy, another parameter of
a stage, and another file beside the weights do not begin the count again. A candidate is known by the digest of the
weights that it adds, so the same repair made again is no further attempt; judged again under another policy after it
did not pass, it is one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from safegene.errors import ArtifactError, FormatError
from safegene.gate.decision import policy_digest
from safegene.ledger.record import Record
from safegene.workspace.digest import digest_json, strict_json
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import Manifest, read_manifest
from safegene.workspace.parsing import Strict

DECIDED = ("pass", "override", "pending", "fail", "inconclusive")
SERVED = ("adapter_model.safetensors", "change.safetensors")
"""Files of a candidate that hold the weights which it adds."""


@dataclass(frozen=True)
class Attempt:
    """A candidate of a fine-tune.

    Attributes:
        fine_tune: content of the fine-tune; empty where it is not known.
        weights: content of the candidate; empty where it is not known.
        candidate: digest of the candidate's artefact; empty where there is none.
        policy: digest of the gate's parameters.
    """

    fine_tune: str
    weights: str
    candidate: str
    policy: str

    def has_candidate_of(self, tried: "Tried") -> bool:
        """Whether that attempt was on this candidate."""
        return tried.candidate == self.candidate or bool(tried.weights and tried.weights == self.weights)


def present_attempt(workspace: Workspace, target: str) -> Attempt:
    """The present candidate of a target; manifests are read, and files not verified."""
    policy = policy_digest(workspace.params.gate)
    try:
        read_manifest(workspace.checkpoint(target), verify=False)
        path = workspace.checkpoint(target) / "checkpoint.json"
        checkpoint = strict_json(path.read_bytes(), where=str(path)) if path.is_file() else None
    except (ArtifactError, FormatError):
        checkpoint = None
    try:
        candidate = read_manifest(workspace.candidate(target), verify=False)
    except ArtifactError:
        return Attempt(fine_tune_content(checkpoint), "", "", policy)
    return Attempt(fine_tune_content(checkpoint), candidate_weights(candidate), candidate.digest, policy)


def fine_tune_content(checkpoint: Any) -> str:
    """Digest of a fine-tune's weights files, whatever their names; of a record without them, its checkpoint's digest.

    Args:
        checkpoint: the content of ``checkpoint.json``, or of field ``model`` of a record; anything else is unknown.
    """
    if not isinstance(checkpoint, Mapping):
        return ""
    files = checkpoint.get("files")
    if isinstance(files, Mapping):
        weights = sorted(str(digest) for name, digest in files.items() if str(name).endswith(".safetensors"))
        if weights:
            return digest_json(weights)
    return str(checkpoint.get("digest") or "")


def candidate_weights(candidate: Manifest) -> str:
    """Digest of the weights that a candidate adds; empty where its manifest names none."""
    files = {name: candidate.files[name] for name in SERVED if name in candidate.files}
    return digest_json(files) if files else ""


def recorded_weights(record: Record) -> str | None:
    """`candidate_weights` of a record's candidate; None in records of earlier versions."""
    weights = record.predicate.vector.get("candidate_weights")
    return weights if isinstance(weights, str) and weights else None


class Tried(Strict):
    """What a record says of an attempt.

    Attributes:
        candidate: digest of the candidate's artefact.
        weights: see `recorded_weights`; "" where it is not known.
        policy: digest of the gate's parameters; "" where it is not known.
        passed: whether it passed.
    """

    candidate: str
    weights: str
    policy: str
    passed: bool


def tried_by(record: Record) -> tuple[str, Tried] | None:
    """The fine-tune's content, and what was tried on it; None for a record that is no attempt with a verdict."""
    fine_tune, candidate = fine_tune_content(record.predicate.model), record.artefacts.get("candidate")
    if not fine_tune or not candidate or record.outcome not in DECIDED:
        return None
    policy = record.predicate.policy
    digest = str(policy.get("digest")) if isinstance(policy, dict) else ""
    return fine_tune, Tried(
        candidate=candidate, weights=recorded_weights(record) or "", policy=digest, passed=record.outcome == "pass"
    )


def earlier_attempts(tried: Iterable[Tried], attempt: Attempt) -> tuple[str, ...]:
    """The attempts that are older than the present candidate's first, oldest first.

    Args:
        tried: what was tried on the fine-tune, oldest first.
        attempt: the present candidate.

    Returns:
        Of each attempt the digest of its candidate's artefact; the present candidate's for each other policy under
        which it did not pass.
    """
    earlier: dict[tuple[str, str], str] = {}
    for one in tried:
        if not attempt.has_candidate_of(one):
            earlier.setdefault((one.weights or one.candidate, ""), one.candidate)
        elif one.passed or one.policy == attempt.policy:
            break
        else:
            earlier.setdefault((one.candidate, one.policy), one.candidate)
    return tuple(earlier.values())
