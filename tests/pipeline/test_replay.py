"""What a replay restores from a record, and what it says where something is missing; no model is run."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from safegene.errors import ArtifactError, LedgerError, SafegeneError
from safegene.ledger.keys import create_key
from safegene.ledger.release import release_manifests
from safegene.ledger.trace import named_record
from safegene.pipeline.replay import SHARED, fresh_cache, replay
from safegene.pipeline.replay_inputs import recorded_run, restore_inputs
from safegene.pipeline.stages.promote import revoke, rollback
from safegene.workspace.digest import digest_file
from safegene.workspace.git import git, head_commit, worktree
from safegene.workspace.layout import Workspace, cache_folder
from safegene.workspace.manifest import read_manifest
from tests.factories.bundles import add_publication
from tests.factories.ledger import TARGET, attempt, ledger_of, make_receipt, make_workspace, records


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """A workspace in Git with two records, each of whose runs was committed after it; the first one's data changed."""
    ws = make_workspace(tmp_path / "ws")
    (ws.root / ".gitignore").write_text("/data/family/\n/data/targets/*/*/\n")
    git(ws.root, "init", "--quiet", "--initial-branch=main")
    for key, value in (("user.name", "a"), ("user.email", "a@localhost")):
        git(ws.root, "config", key, value)
    commit(ws)
    (ws.prompts / "gate.jsonl").write_bytes(b'{"id": "changed before the first run"}\n')
    make_receipt(ws)
    assert attempt(ws, alpha=1.0) == "pass"
    commit(ws)
    assert attempt(ws, alpha=2.0) == "pass"
    commit(ws)
    return ws


def commit(ws: Workspace) -> None:
    git(ws.root, "add", "--all")
    git(ws.root, "commit", "--quiet", "--allow-empty", "-m", "run")


def restore(ws: Workspace, name: str, place: Path) -> tuple[Workspace, tuple[str, ...]]:
    """The worktree of a record, kept, and the notes."""
    ledger = ledger_of(ws)
    record = named_record(ledger, name, "production")
    manifests = release_manifests(ledger.store, record.release) if record.release else {}
    code: Any = record.predicate.code
    git(ws.root, "worktree", "add", "--quiet", "--detach", str(place), code["git_commit"])
    return Workspace(place), restore_inputs(ws, Workspace(place), ledger, recorded_run(record, manifests))


def test_data_that_were_not_committed_yet_are_taken_from_a_later_commit(ws: Workspace, tmp_path: Path) -> None:
    recorded = digest_file(ws.prompts / "gate.jsonl")
    (ws.prompts / "gate.jsonl").write_bytes(b'{"id": "and once more since"}\n')
    (ws.prompts / "extra.jsonl").write_bytes(b"{}\n")
    commit(ws)
    copy, notes = restore(ws, "0", tmp_path / "copy")
    assert digest_file(copy.prompts / "gate.jsonl") == recorded
    assert sorted(path.name for path in copy.prompts.iterdir()) == ["gate.jsonl", "safety.jsonl"]
    assert [note for note in notes if note.startswith("data/prompts/gate.jsonl was not committed")]


def test_parameters_are_those_of_the_record(ws: Workspace, tmp_path: Path) -> None:
    path = ws.root / "params.yaml"
    committed = path.read_text()
    path.write_text(committed.replace("margin_asr: 0.1", "margin_asr: 0.09"))
    assert attempt(ws, alpha=3.0) == "pass"
    path.write_text(committed)
    commit(ws)
    copy, notes = restore(ws, "2", tmp_path / "copy")
    assert copy.params.gate.margin_asr == 0.09
    assert "params.yaml at the commit has gate.margin_asr = 0.1; the record has 0.09" in notes
    assert copy.params.compress.rank == 4  # of the recorded recipe


def test_the_target_and_what_was_live_are_those_of_the_record(ws: Workspace, tmp_path: Path) -> None:
    first, second = records(ws)[1], records(ws)[0]
    for name, live in (("0", None), ("1", first.release)):
        copy, _ = restore(ws, name, tmp_path / name)
        target = copy.targets.targets[TARGET]
        assert (target.source, target.task) == (f"tiny://{TARGET}?seed=0", "sentiment")
        assert target.fingerprint == ws.targets.targets[TARGET].fingerprint
        incumbent = json.loads(copy.incumbent(TARGET).read_bytes())
        assert incumbent["live"] == live
    assert (tmp_path / "1" / incumbent["release"] / "release.json").is_file()
    assert second.release


def test_a_fetched_vector_is_fetched_again_from_the_recorded_place(ws: Workspace, tmp_path: Path) -> None:
    add_publication(ws, create_key(), uri="file:///vectors/v1")
    assert attempt(ws, alpha=3.0) == "pass"
    commit(ws)
    path = ws.root / "params.yaml"
    path.write_text(path.read_text().replace("/vectors/v1", "/vectors/v2"))
    commit(ws)
    copy, _ = restore(ws, "2", tmp_path / "copy")
    published: Any = records(ws)[0].predicate.vector["publisher"]
    assert copy.params.family.vector == published["source"] == "file:///vectors/v1"
    assert copy.params.family.publisher == published["key"].removeprefix("sha256:")
    assert copy.targets.vector == published["bundle"]
    copy, _ = restore(ws, "1", tmp_path / "made")
    assert (copy.params.family.vector, copy.params.family.publisher, copy.targets.vector) == (None, None, None)


def test_a_record_names_the_digests_that_are_compared(ws: Workspace) -> None:
    ledger, record = ledger_of(ws), records(ws)[0]
    run = recorded_run(record, release_manifests(ledger.store, str(record.release)))
    assert run.coefficients == digest_file(ws.candidate(TARGET) / "coefficients.json")
    assert run.incumbent == digest_file(ws.incumbent(TARGET))
    assert run.task == digest_file(ws.tasks / "sentiment.jsonl")
    assert record.artefacts["vector"] == read_manifest(ws.vector).digest


def _drop_history(ws: Workspace) -> None:
    shutil.rmtree(ws.root / ".git")
    git(ws.root, "init", "--quiet", "--initial-branch=main")
    for key, value in (("user.name", "a"), ("user.email", "a@localhost")):
        git(ws.root, "config", key, value)
    commit(ws)


def test_a_commit_that_is_not_here_is_named_with_what_to_do(ws: Workspace) -> None:
    missing = head_commit(ws.root)
    assert attempt(ws, alpha=3.0) == "pass"
    _drop_history(ws)
    with pytest.raises(LedgerError, match=f"expected commit {missing}, from which record 2") as error:
        replay(ws, TARGET)
    assert "git fetch" in error.value.remedy


def test_data_that_are_nowhere_are_named_with_what_to_do(ws: Workspace) -> None:
    commit(ws)
    (ws.prompts / "gate.jsonl").write_bytes(b'{"id": "never committed"}\n')
    make_receipt(ws)
    assert attempt(ws, alpha=3.0) == "pass"
    (ws.prompts / "gate.jsonl").write_bytes(b'{"id": "another"}\n')
    commit(ws)
    with pytest.raises(ArtifactError, match=r"expected data/prompts/gate\.jsonl with sha256:") as error:
        replay(ws, TARGET)
    assert "dvc fetch" in error.value.remedy
    assert git(ws.root, "worktree", "list").count("\n") == 0, "the worktree is removed after an error"


def test_a_revocation_has_nothing_to_make_again_and_a_rollback_means_what_it_restored(ws: Workspace) -> None:
    rollback(ws, TARGET)
    revoke(ws, read_manifest(ws.candidate(TARGET)).digest, "poisoned")
    with pytest.raises(LedgerError, match="got record 3 of outcome 'revocation'"):
        replay(ws, "3")
    with pytest.raises(SafegeneError, match="record 0 cannot be replayed here, at stage validate"):
        replay(ws, "2")  # the sets of these tests are too short for the pipeline


def test_a_worktree_leaves_branch_and_files_as_they_are(ws: Workspace, tmp_path: Path) -> None:
    before: Any = (git(ws.root, "status", "--porcelain"), git(ws.root, "rev-parse", "HEAD"))
    hook = ws.root / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    hook.chmod(0o755)
    with worktree(ws.root, "HEAD~1", tmp_path / "copy") as root:
        assert (root / "params.yaml").is_file()
        assert head_commit(root) != head_commit(ws.root)
    assert not (tmp_path / "copy").exists()
    assert not (tmp_path / "ran").exists()
    assert (git(ws.root, "status", "--porcelain"), git(ws.root, "rev-parse", "HEAD")) == before


def test_nothing_that_earlier_runs_computed_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "user"))
    for name in ("replies", "degrade", "extract", "stats", "checkpoints"):
        (tmp_path / "user" / name).mkdir(parents=True)
    with fresh_cache(tmp_path / "fresh"):
        assert cache_folder() == tmp_path / "fresh"
        assert {path.name for path in cache_folder().iterdir()} == set(SHARED)
        assert "replies" not in SHARED
    assert cache_folder() == tmp_path / "user"
    monkeypatch.delenv("SAFEGENE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    with fresh_cache(tmp_path / "again"):
        assert cache_folder() == tmp_path / "again"
    assert "SAFEGENE_CACHE" not in os.environ
