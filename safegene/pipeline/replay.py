"""Replay: make the artefacts of a record again, from the record alone, and compare their digests with the recorded.

A fresh Git worktree is checked out at the recorded commit. Data, parameters, sources and what was live are restored as
the record and its release name them, and every stage runs again, in its own process. Nothing is taken from DVC's cache
or from what earlier runs computed; the cache of checkpoints is used, whose digests are verified. The workspace, its
ledger and its branches stay as they are.

Equal digests need the same versions of the libraries and the same kind of processor: other ones round differently.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safegene.errors import ArtifactError, LedgerError, SafegeneError
from safegene.ledger.chain import Ledger, open_ledger
from safegene.ledger.record import Record
from safegene.ledger.release import release_manifests
from safegene.ledger.trace import leaves, named_record
from safegene.pipeline.process import read_error
from safegene.pipeline.replay_inputs import RecordedRun, recorded_run, restore_inputs
from safegene.pipeline.runner import child_environment
from safegene.pipeline.table import Stage, pipeline_of
from safegene.version import __version__
from safegene.workspace.digest import digest_file
from safegene.workspace.git import has_commit, worktree
from safegene.workspace.layout import Workspace, cache_folder
from safegene.workspace.manifest import Manifest, read_manifest

COMPARED = ("vector", "coefficients", "verdict")
"""What a replay must give again; the other artefacts are compared to say where a difference begins."""
SHARED = ("checkpoints", "parts", "sources", "tiny", "judges")
"""Folders of the cache that a replay uses: checkpoints and judges, whose digests are verified."""


@dataclass(frozen=True)
class ReplayedDigest:
    """One artefact, as recorded and as it was made again.

    Attributes:
        name: its name; ``coefficients`` is a file of the candidate.
        recorded: the digest in the record; "" where the record has none.
        rebuilt: the digest of what was made again.
        differs_in: where the manifest differs from the one in the release, such as ``inputs.vector``.
    """

    name: str
    recorded: str
    rebuilt: str
    differs_in: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether both digests are equal."""
        return self.recorded == self.rebuilt


@dataclass(frozen=True)
class Replay:
    """The result of a replay.

    Attributes:
        record: the record whose artefacts were made again; of a rollback, the record that it restored.
        commit: the Git commit that was checked out.
        artefacts: every artefact, in the order of the stages, and ``coefficients``.
        notes: what else to know, a sentence each.
    """

    record: Record
    commit: str
    artefacts: tuple[ReplayedDigest, ...]
    notes: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether vector, coefficients and verdict have the recorded digests."""
        return all(one.same for one in self.artefacts if one.name in COMPARED)


def replay(workspace: Workspace, name: str) -> Replay:
    """Make the artefacts of a record again and compare them; see the module.

    Args:
        workspace: the pipeline repository, with the recorded commit in its history.
        name: a target that is live, or a record: its number, or at least 8 digits of its digest.

    Raises:
        LedgerError: there is no such record, or it rests on no artefacts; the recorded commit is not here.
        ArtifactError: a recorded data set is neither at that commit nor at another commit of this repository.
        SafegeneError: a stage failed, such as the fetch of a checkpoint that is no longer at its source.
    """
    ledger = open_ledger(workspace.params.promote, workspace.root)
    record = _rebuildable(ledger, named_record(ledger, name, workspace.params.promote.channel))
    commit = _commit(workspace, record)
    manifests = release_manifests(ledger.store, record.release) if record.release else {}
    run = recorded_run(record, manifests)
    with (
        tempfile.TemporaryDirectory(prefix="safegene-replay-") as box,
        worktree(workspace.root, commit, Path(box) / "worktree") as root,
    ):
        copy = Workspace(root)
        notes = restore_inputs(workspace, copy, ledger, run)
        with fresh_cache(Path(box) / "cache"):
            for stage in pipeline_of(copy.params):
                if stage.tracked:
                    _run(stage, copy, record)
        artefacts = tuple(_compare(copy, run, manifests))
    return Replay(record, commit, artefacts, (*_versions(record), *notes))


def _rebuildable(ledger: Ledger, record: Record) -> Record:
    """The record itself, or the one whose release a rollback restored.

    Raises:
        LedgerError: it has no artefacts to make again.
    """
    by_digest: Mapping[str, Record] = {}
    while record.outcome == "rollback":
        by_digest = by_digest or {one.digest: one for one in ledger.walk()}
        record = by_digest[str(record.restores)]
    if record.outcome == "revocation" or not {"vector", "verdict"} <= set(record.artefacts):
        raise LedgerError(
            f"expected a record of artefacts from the vector to the verdict, got record {record.sequence} of outcome "
            f"{record.outcome!r}, which names {', '.join(sorted(record.artefacts)) or 'none'}",
            remedy="choose a record of outcome pass, fail or inconclusive: `safegene audit history TARGET`",
        )
    return record


def _commit(workspace: Workspace, record: Record) -> str:
    code = record.predicate.code
    commit = code.get("git_commit") if isinstance(code, Mapping) else None
    if not isinstance(commit, str):
        raise LedgerError(f"expected a Git commit in record {record.sequence}, got none: the workspace had no commit")
    if not has_commit(workspace.root, commit):
        raise LedgerError(
            f"expected commit {commit}, from which record {record.sequence} was made, in the repository of "
            f"{workspace.root}, got a history without it",
            remedy="fetch it (`git fetch --all`, `git fetch --unshallow`), or replay where it was promoted",
        )
    return commit


@contextmanager
def fresh_cache(folder: Path) -> Iterator[None]:
    """Let child processes use an empty cache that shares only `SHARED` with the user's."""
    shared, before = cache_folder().resolve(), os.environ.get("SAFEGENE_CACHE")
    folder.mkdir()
    for name in SHARED:
        (shared / name).mkdir(exist_ok=True)
        (folder / name).symlink_to(shared / name)
    os.environ["SAFEGENE_CACHE"] = str(folder)
    try:
        yield
    finally:
        del os.environ["SAFEGENE_CACHE"]
        if before is not None:
            os.environ["SAFEGENE_CACHE"] = before


def _run(stage: Stage, copy: Workspace, record: Record) -> None:
    """Run one stage in the worktree as a child process; its progress goes to stderr."""
    target = record.target if stage.per_target else ""
    address, error_file = stage.address(target), copy.root / ".safegene" / "error.json"
    error_file.parent.mkdir(exist_ok=True)
    with child_environment(error_file, stage, copy.params):
        command = ["safegene", stage.name, *([target] if target else [])]
        done = subprocess.run(command, cwd=copy.root, stdout=subprocess.DEVNULL, check=False)
    if done.returncode == 0:
        return
    cause = read_error(error_file, address) or SafegeneError(f"expected {address} to succeed, got {done.returncode}")
    remedy = cause.remedy
    if stage.name.startswith("fetch"):
        content = record.predicate
        field = {"fetch": content.base, "fetch-vector": content.vector.get("publisher")}.get(stage.name, content.model)
        source = field.get("source") if isinstance(field, Mapping) else "its source"
        remedy = f"what it fetches must be in the cache or at {source}, as it was; {remedy}".rstrip("; ")
    message = f"record {record.sequence} cannot be replayed here, at stage {address}: {cause.message}"
    raise type(cause)(message, remedy=remedy)


def _compare(copy: Workspace, run: RecordedRun, manifests: Mapping[str, Manifest]) -> Iterator[ReplayedDigest]:
    record = run.record
    for name, folder in copy.artefacts(record.target).items():
        with suppress(ArtifactError):
            rebuilt = read_manifest(folder)
            differences = _differences(manifests[name], rebuilt) if name in manifests else ()
            recorded = record.artefacts.get(name, "")
            yield ReplayedDigest(name, recorded, rebuilt.digest, differences if recorded != rebuilt.digest else ())
        if name == "candidate":
            coefficients = digest_file(folder / "coefficients.json")
            yield ReplayedDigest("coefficients", run.coefficients, coefficients)


def _differences(recorded: Manifest, rebuilt: Manifest) -> tuple[str, ...]:
    one, other = (dict(leaves(manifest.model_dump(mode="json"))) for manifest in (recorded, rebuilt))
    missing = object()
    return tuple(
        place for place in sorted(one.keys() | other.keys()) if one.get(place, missing) != other.get(place, missing)
    )


def _versions(record: Record) -> Iterator[str]:
    """What differs between the code of the record and this installation."""
    code: Any = record.predicate.code
    recorded = code.get("safegene") if isinstance(code, Mapping) else None
    if recorded != __version__:
        yield f"made again with safegene {__version__}; record {record.sequence} was made with {recorded}"
