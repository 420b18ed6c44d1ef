"""The state of a workspace, from its artefacts and its ledger: what exists, what verifies, and what it says.

Nothing is computed here. What was not measured stays None. An artefact that was altered, or was made from something
that has changed since, gives no number and no outcome, only the reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from safegene.errors import SafegeneError, StaleArtifact, as_safegene_error
from safegene.gate import Rate, VerdictFile, VerdictOutcome, further_prompts
from safegene.gate.decision import policy_digest
from safegene.ledger.drift import read_drift
from safegene.report.files import CheckpointView, CoefficientsView, SelectionView
from safegene.report.live import LastAttempt, LedgerView, LiveLookup, LiveRelease, read_ledger
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import NAME, Manifest, read_manifest
from safegene.workspace.params import Target
from safegene.workspace.parsing import parse_json
from safegene.workspace.staleness import data_digests, require_current

SHOWN_ARMS = ("before", "after", "aligned")  # the candidate is shown as "after"

# The names under which later stages list these artefacts among their inputs.
FAMILY = ("aligned", "degraded", "delta", "vector", "selection")
FETCHED = ("aligned", "published", "vector", "selection")  # where ``family.vector`` is set
TARGET = ("target", "candidate", "judgements", "verdict")
LARGE = ("degraded", "delta")  # gigabytes for a real family: only `safegene audit verify` reads all of their bytes
NOT_MEASURED = Rate(rate=None, interval=None)

File = TypeVar("File")


@dataclass(frozen=True)
class RecordedArtefact:
    """An artefact and whether it can be relied on.

    Attributes:
        name: what later stages call it.
        path: its folder.
        manifest: its manifest; None when the artefact is absent or unusable.
        problem: why it is unusable; "" when it is usable or absent.
    """

    name: str
    path: Path
    manifest: Manifest | None = None
    problem: str = ""

    @property
    def digest(self) -> str | None:
        """The artefact's digest; None when it is absent or unusable."""
        return self.manifest.digest if self.manifest else None

    @property
    def written(self) -> str:
        """When the artefact's files came here, in ISO 8601; "" when it is absent or unusable."""
        if self.manifest is None:
            return ""
        return datetime.fromtimestamp((self.path / NAME).stat().st_mtime, UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class TargetState:
    """The state of one fine-tune.

    Attributes:
        name: its name in ``data/targets.yaml``.
        source: where it comes from.
        task: its task set.
        artefacts: its artefacts by name, in the pipeline's order.
        coefficients: of its candidate; None when there is no usable candidate.
        verdict: None when there is no usable verdict.
        live: what is live for it; None when nothing is, or when that is unknown.
        live_problem: why it is unknown what is live; "" when it is known.
        attempt: its last attempt on record; None when there is none, or when that is unknown.
        blocked: why its candidate would be refused now although the verdict is a pass; "" when it would not be.
        further: about how many more prompts would decide an inconclusive verdict; "" where prompts are not missing.
        drift: what the newest check of the live release found, where it is no pass; "" otherwise.
    """

    name: str
    source: str
    task: str
    artefacts: Mapping[str, RecordedArtefact]
    coefficients: CoefficientsView | None = None
    verdict: VerdictFile | None = None
    live: LiveRelease | None = None
    live_problem: str = ""
    attempt: LastAttempt | None = None
    blocked: str = ""
    further: str = ""
    drift: str = ""

    @property
    def outcome(self) -> VerdictOutcome | None:
        """Outcome of the verdict; None when there is no usable verdict."""
        return self.verdict.outcome if self.verdict else None

    @property
    def unrepaired(self) -> bool:
        """Whether the candidate is the fine-tune without a repair; False when there is no usable candidate."""
        return self.coefficients is not None and not self.coefficients.repaired

    @property
    def candidate_is_live(self) -> bool:
        """Whether the workspace's candidate is live and not revoked."""
        digest = self.artefacts["candidate"].digest
        return self.live is not None and digest is not None and self.live.candidate == digest and not self.live.revoked

    @property
    def decided(self) -> LastAttempt | None:
        """The last attempt, if it was on the present verdict; None otherwise."""
        digest = self.artefacts["verdict"].digest
        return self.attempt if self.attempt and digest and self.attempt.verdict == digest else None

    @property
    def problems(self) -> tuple[str, ...]:
        """Why artefacts are unusable, in the pipeline's order, and why the live release is not served."""
        revoked = (f"what is live is not served: {self.live.revoked}",) if self.live and self.live.revoked else ()
        return (*(artefact.problem for artefact in self.artefacts.values() if artefact.problem), *revoked)

    def rate(self, measure: str, arm: str) -> Rate:
        """A rate of ``before``, ``after``, ``aligned`` or ``incumbent``, as the verdict states it."""
        rate = self.verdict.rate(measure, arm) if self.verdict else None
        return rate or NOT_MEASURED


@dataclass(frozen=True)
class WorkspaceState:
    """Everything that the report and ``safegene status`` show.

    Attributes:
        root: the workspace.
        family: the family's artefacts by name, in the pipeline's order.
        aligned: the aligned model's record; None when there is no usable one.
        selection: the layer selection; None when there is no usable one.
        targets: the fine-tunes.
    """

    root: Path
    family: Mapping[str, RecordedArtefact]
    aligned: CheckpointView | None
    selection: SelectionView | None
    targets: tuple[TargetState, ...]


def read_state(
    workspace: Workspace, *, targets: Sequence[str] | None = None, live: LiveLookup | None = None
) -> WorkspaceState:
    """Read and verify a workspace's artefacts.

    Args:
        workspace: the pipeline repository.
        targets: which fine-tunes; None for all of ``data/targets.yaml``.
        live: function from target name to its live release; if None, the ledger is read and verified with the pinned
            public key.

    Raises:
        ParamsError: ``data/targets.yaml`` is unusable.

    Example:
        >>> [target] = safegene.status(ws).targets
        >>> target.outcome, target.candidate_is_live
        ('pass', True)
    """
    known = workspace.targets.targets
    reader = _Reader(_current_policy(workspace), frozenset(data_digests(workspace).values()), {})
    aligned = reader.read_file("aligned", workspace.aligned, "checkpoint.json", CheckpointView)
    for name in (FETCHED if fetched_vector(workspace) else FAMILY)[1:-1]:
        reader.read(name, getattr(workspace, name))
    selection = reader.read_file("selection", workspace.selection, "selection.json", SelectionView)
    ledger = LedgerView(live) if live else read_ledger(workspace)
    chosen = known if targets is None else [target for target in targets if target in known]
    states = tuple(_target_state(workspace, name, known[name], reader.for_target(), ledger) for name in chosen)
    return WorkspaceState(workspace.root, reader.artefacts, aligned, selection, states)


def _target_state(ws: Workspace, name: str, entry: Target, reader: "_Reader", ledger: LedgerView) -> TargetState:
    reader.read("target", ws.checkpoint(name))
    coefficients = reader.read_file("candidate", ws.candidate(name), "coefficients.json", CoefficientsView)
    reader.read("judgements", ws.judgements(name))
    verdict = reader.read_file("verdict", ws.verdict(name), "verdict.json", VerdictFile)
    state = TargetState(
        name,
        entry.source,
        entry.task,
        {kind: reader.artefacts[kind] for kind in TARGET},
        coefficients,
        verdict,
        ledger.live(name),
        ledger.problem,
        ledger.last(name),
        drift=_drift(ws, name, ledger.live(name)),
    )
    if verdict is not None and verdict.outcome == "inconclusive":
        return replace(state, further=further_prompts(verdict, ws.params.gate).sentence)
    if verdict is None or verdict.outcome != "pass" or state.candidate_is_live:
        return state
    return replace(state, blocked=ledger.blocked(name, verdict))


def _drift(ws: Workspace, name: str, live: LiveRelease | None) -> str:
    try:
        check = read_drift(ws, name)
    except (SafegeneError, OSError) as error:
        return f"what the newest check of the live release found is unknown: {as_safegene_error(error).summary}"
    return check.sentence if check and live and check.release == live.release and check.outcome != "pass" else ""


def _current_policy(workspace: Workspace) -> str:
    try:
        return policy_digest(workspace.params.gate)
    except SafegeneError as error:
        return f"(unknown: {error.message})"


def fetched_vector(workspace: Workspace) -> bool:
    """Whether the vector is a published one; False where ``params.yaml`` is unusable."""
    try:
        return workspace.params.family.vector is not None
    except SafegeneError:
        return False


class _Reader:
    """Reads artefacts in the pipeline's order, and refuses one whose inputs have changed since it was made.

    Args:
        policy: digest of the present policy.
        data: digests of the present prompt and task sets.
        artefacts: artefacts that were read already, by name.
    """

    def __init__(self, policy: str, data: frozenset[str], artefacts: Mapping[str, RecordedArtefact]) -> None:
        self._policy, self._data = policy, data
        self.artefacts = dict(artefacts)

    def for_target(self) -> "_Reader":
        """A reader of one target's artefacts, which knows those that were read so far."""
        return _Reader(self._policy, self._data, self.artefacts)

    def read(self, name: str, path: Path) -> None:
        """Read an artefact's manifest, verify its bytes, and compare its inputs with what is there now."""
        self.artefacts[name] = self._verified(name, path)

    def read_file(self, name: str, path: Path, file: str, model: type[File]) -> File | None:
        """As `read`; the artefact's main file as ``model``, or None when the artefact is absent or unusable."""
        self.read(name, path)
        if self.artefacts[name].manifest is None:
            return None
        try:
            content = parse_json(model, (path / file).read_bytes(), where=str(path / file))
        except (SafegeneError, OSError) as error:
            self._refuse(name, path, str(error))
            return None
        if isinstance(content, VerdictFile) and content.policy != self._policy:
            expected = f"expected a verdict under the present policy {self._policy}"
            self._refuse(name, path, f"{expected}, got one under {content.policy}, in {path}")
            return None
        return content

    def _refuse(self, name: str, path: Path, problem: str) -> None:
        self.artefacts[name] = RecordedArtefact(name, path, problem=problem)

    def _verified(self, name: str, path: Path) -> RecordedArtefact:
        if not (path / NAME).is_file():
            return RecordedArtefact(name, path)
        try:
            manifest = read_manifest(path, verify=name not in LARGE)
            if "published" in self.artefacts and name in ("vector", "selection"):
                self._require_published(name, path, manifest)
                return RecordedArtefact(name, path, manifest)
            self._require_usable_inputs(name, path, manifest)
            current = {used: artefact.digest for used, artefact in self.artefacts.items() if artefact.digest}
            require_current(name, path, manifest, current, data=self._data)
        except (SafegeneError, OSError) as error:
            return RecordedArtefact(name, path, problem=str(error))
        return RecordedArtefact(name, path, manifest)

    def _require_published(self, name: str, path: Path, manifest: Manifest) -> None:
        """Raise StaleArtifact unless it is what the publisher signed; its inputs stayed with the publisher."""
        published = self.artefacts["published"].manifest
        if (expected := published.inputs.get(name) if published else None) != manifest.digest:
            raise StaleArtifact(f"expected the published {name} {expected}, got {manifest.digest}, in {path}")

    def _require_usable_inputs(self, name: str, path: Path, manifest: Manifest) -> None:
        """Raise StaleArtifact if an input is unusable, or if the target's candidate or judgements are absent."""
        for artefact in (self.artefacts[used] for used in manifest.inputs if used in self.artefacts):
            absent = artefact.manifest is None and artefact.name in ("candidate", "judgements")
            if artefact.problem or absent:
                state = "an unusable" if artefact.problem else "no"
                expected = f"expected {name} made from the present {artefact.name}"
                raise StaleArtifact(f"{expected}, got {state} {artefact.name}, in {path}")
