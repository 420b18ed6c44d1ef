"""What a replay puts into its worktree: data, parameters, targets and what was live, each as the record names it."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from safegene.errors import ArtifactError, FormatError, LedgerError
from safegene.ledger.chain import Ledger
from safegene.ledger.incumbent import Incumbent, read_incumbent
from safegene.ledger.record import Record
from safegene.ledger.release import open_release
from safegene.workspace.atomic import write_file
from safegene.workspace.digest import PREFIX, digest_bytes, digest_file
from safegene.workspace.git import versions_of
from safegene.workspace.layout import Workspace, cache_folder
from safegene.workspace.manifest import Manifest
from safegene.workspace.params import Params, Target, Targets, load_params, load_targets, save_targets
from safegene.workspace.parsing import parse_json
from safegene.workspace.staleness import data_digests

RECIPE = {"degraded": "degrade", "delta": "extract", "vector": "compress"}
"""Artefact of the field ``vector.recipe`` -> section of ``params.yaml`` that made it."""
RECEIPTS = {"aligned": "fetch", "selection": "select", "judgements": "evaluate"}
"""Artefact whose manifest lies in a release -> section of ``params.yaml`` that made it."""


@dataclass(frozen=True)
class RecordedRun:
    """What a record says about the run that made its artefacts.

    Attributes:
        record: the record.
        datasets: path of a data set below ``data`` -> digest.
        params: section of ``params.yaml`` -> recorded parameters.
        coefficients: digest of the coefficients; "" where none is recorded.
        task: digest of the task set; "" where none is recorded.
        incumbent: digest of ``incumbent.json`` at the evaluation; None where it is not known.
    """

    record: Record
    datasets: Mapping[str, str]
    params: Mapping[str, Mapping[str, Any]]
    coefficients: str
    task: str
    incumbent: str | None


def recorded_run(record: Record, manifests: Mapping[str, Manifest]) -> RecordedRun:
    """Collect it from the record and from the manifests in its release."""
    content = record.predicate
    vector, policy, suite = content.vector, _mapping(content.policy), _mapping(content.suite)
    recipe = _mapping(vector.get("recipe"))
    made_here = not _mapping(vector.get("publisher"))  # otherwise recipe and selection are the publisher's
    params = {section: _mapping(recipe[name]) for name, section in RECIPE.items() if name in recipe and made_here}
    params["calibrate"] = _mapping(_mapping(vector.get("calibration")).get("params"))
    params["gate"] = _mapping(policy.get("params"))
    receipts = {name: section for name, section in RECEIPTS.items() if made_here or name != "selection"}
    params |= {section: manifests[name].params for name, section in receipts.items() if name in manifests}
    judged = manifests.get("judgements")
    return RecordedRun(
        record,
        {name: _digest(value) for name, value in content.datasets.items() if name != "not_recorded"},
        params,
        str(vector.get("coefficients", "")),
        str(_mapping(suite.get("suites")).get("task", "")),
        judged.inputs.get("incumbent") if judged else None,
    )


def restore_inputs(workspace: Workspace, copy: Workspace, ledger: Ledger, run: RecordedRun) -> tuple[str, ...]:
    """Make the worktree hold what the run of the record had.

    Args:
        workspace: the pipeline repository.
        copy: the worktree, at the recorded commit.
        ledger: the ledger of the workspace.
        run: what to restore.

    Returns:
        What differs from the commit, a sentence each.

    Raises:
        ArtifactError: a data set, or what was live, cannot be found.
        LedgerError: the record does not say enough.
    """
    _share_dvc_cache(workspace, copy)
    notes = list(_restore_data(workspace, copy, run))
    notes += _restore_params(copy, run)
    _restore_targets(copy, run)
    _restore_incumbent(workspace, copy, ledger, run)
    return tuple(notes)


def _share_dvc_cache(workspace: Workspace, copy: Workspace) -> None:
    """Let the worktree use the workspace's DVC cache, and check out from it what ``.dvc`` files of the commit name."""
    tracked = [path for path in copy.data.rglob("*.dvc") if path.is_file()]
    if not tracked:
        return
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with Repo(str(workspace.root)) as repo:
        cache = repo.cache.local.path
    with Repo(str(copy.root)) as repo, repo.config.edit("local") as config:
        config.setdefault("cache", {})["dir"] = str(cache)
    with suppress(DvcException), Repo(str(copy.root)) as repo:  # what is missing is named by _restore_data
        repo.checkout(targets=[str(path) for path in tracked], force=True)


def _restore_data(workspace: Workspace, copy: Workspace, run: RecordedRun) -> Iterator[str]:
    """Every recorded data set with its recorded content, and no other."""
    if not run.datasets:
        raise LedgerError(f"expected data sets in record {run.record.sequence}, got none")
    for name, expected in run.datasets.items():
        path = copy.data / name
        if path.is_file() and digest_file(path) == expected:
            continue
        below = path.relative_to(copy.root).as_posix()
        commit = _restore_version(workspace, copy, below, expected)
        if commit is None:
            got = digest_file(path) if path.is_file() else "no such file"
            raise ArtifactError(
                f"expected {below} with {expected}, as record {run.record.sequence} says, got {got} at its commit, and "
                "another content at every other commit of this repository",
                remedy="get the commit that holds it (`git fetch --all`), or its bytes (`dvc fetch --all-commits`)",
            )
        yield f"{below} was not committed when the run started; taken from commit {commit[:12]}"
    for name in data_digests(copy).keys() - run.datasets.keys():
        (copy.data / name).unlink()


def _restore_version(workspace: Workspace, copy: Workspace, path: str, digest: str) -> str | None:
    """Write the version of a file that has a digest, from any commit; the commit, or None where there is none."""
    for commit, content in versions_of(workspace.root, path):
        if digest_bytes(content) == digest:
            write_file(copy.root / path, content)
            return commit
    return None


def _restore_params(copy: Workspace, run: RecordedRun) -> Iterator[str]:
    """``params.yaml`` of the commit with the recorded parameters in it; a sentence for each that differed."""
    path = copy.root / "params.yaml"
    content: dict[str, Any] = load_params(path).model_dump(mode="json", by_alias=True)
    for section, recorded in run.params.items():
        for key, value in recorded.items():
            if key in content[section] and content[section][key] != value:
                yield f"params.yaml at the commit has {section}.{key} = {content[section][key]}; the record has {value}"
                content[section][key] = value
    published, family = _mapping(run.record.predicate.vector.get("publisher")), content["family"]
    known = {
        "aligned": _mapping(run.record.predicate.base).get("source") or family["aligned"],
        "vector": published.get("source"),
        "publisher": str(published["key"]).removeprefix(PREFIX) if published else None,
    }
    for key, recorded in known.items():
        if recorded != family[key]:
            yield f"params.yaml at the commit has family.{key} = {family[key]}; the record has {recorded}"
            family[key] = recorded
    write_file(path, yaml.safe_dump(Params.model_validate(content).model_dump(mode="json", by_alias=True)))


def _restore_targets(copy: Workspace, run: RecordedRun) -> None:
    """``data/targets.yaml`` with the pins of the family and the one target of the record."""
    record = run.record
    model, base = _mapping(record.predicate.model), _mapping(record.predicate.base)
    committed = load_targets(copy.targets_file) if copy.targets_file.is_file() else Targets()
    tasks = [
        Path(name).stem for name, digest in run.datasets.items() if name.startswith("tasks/") and digest == run.task
    ]
    known = committed.targets.get(record.target)
    if not tasks or not {"source", "fingerprint"} <= model.keys() or "fingerprint" not in base:
        raise LedgerError(
            f"expected sources, fingerprints and a task set in record {record.sequence}, got other fields"
        )
    task = known.task if known and known.task in tasks else tasks[0]
    target = Target(source=str(model["source"]), task=task, fingerprint=str(model["fingerprint"]))
    published = _mapping(record.predicate.vector.get("publisher"))
    changes = {
        "aligned": str(base["fingerprint"]),
        "vector": published.get("bundle"),
        "targets": {record.target: target},
    }
    save_targets(copy.targets_file, committed.model_copy(update=changes))


def _restore_incumbent(workspace: Workspace, copy: Workspace, ledger: Ledger, run: RecordedRun) -> None:
    """``incumbent.json`` as it was at the evaluation, and the release that it names where the ledger is a folder."""
    path, record = copy.incumbent(run.record.target), run.record
    below = path.relative_to(copy.root).as_posix()
    here = path.is_file() and digest_file(path) == run.incumbent
    if run.incumbent is None:
        _choose_incumbent(workspace, path, below, ledger, record)
    elif not here and _restore_version(workspace, copy, below, run.incumbent) is None:
        raise ArtifactError(
            f"expected {below} with {run.incumbent}, as the release of record {record.sequence} says, got another "
            "content at every commit of this repository",
            remedy="get the commit that holds it: `git fetch --all`",
        )
    incumbent = read_incumbent(path)
    place = str(incumbent.release)
    if incumbent.live and "://" not in place and not Path(place).is_absolute() and not (copy.root / place).is_dir():
        source = open_release(ledger.store, incumbent.live, cache=cache_folder())
        shutil.copytree(source, copy.root / place)


def _choose_incumbent(workspace: Workspace, path: Path, below: str, ledger: Ledger, record: Record) -> None:
    """The newest committed version that fits the record of a refusal, which has no release that names its digest."""
    releases = {one.digest: one.release for one in ledger.walk()}
    live, candidate = releases.get(record.replaces or ""), record.artefacts.get("candidate")
    for _, content in versions_of(workspace.root, below):
        with suppress(FormatError):
            version = parse_json(Incumbent, content, where=below)
            if version.live == live and candidate not in version.earlier:
                write_file(path, content)
                return


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _digest(value: Any) -> str:
    """A data set's digest, alone or in a mapping with what else is known of it."""
    return str(_mapping(value).get("digest", "")) if isinstance(value, Mapping) else str(value)
