"""Clones that run different targets at once: every commit and all data arrive; nothing of anybody is lost."""

import json
import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from safegene.errors import SafegeneError
from safegene.ledger import SEEN
from safegene.pipeline import share
from safegene.pipeline.share import merge_entries, share_commits
from safegene.workspace.atomic import write_file
from safegene.workspace.git import commit_files
from safegene.workspace.git import git as own_git
from safegene.workspace.layout import Workspace
from safegene.workspace.params import Target, Targets, load_targets, save_targets
from safegene.workspace.plain_yaml import dump_yaml, load_yaml
from tests.factories.commands import dvc, git
from tests.factories.ledger import flip_byte


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "merged", "both"),
    [
        ({}, {"a": 1}, {"b": 2}, {"a": 1, "b": 2}, []),
        ({"a": 1}, {"a": 2}, {"a": 1, "b": 2}, {"a": 2, "b": 2}, []),
        ({"a": 1}, {"a": 1}, {"a": 3}, {"a": 3}, []),
        ({"a": 1}, {"a": 2}, {"a": 3}, {"a": 3}, ["a"]),
        ({"a": 1}, {"a": 2}, {"a": 2}, {"a": 2}, []),
        ({"a": 1, "b": 1}, {"b": 1}, {"a": 1, "b": 1}, {"b": 1}, []),
        ({"a": 1}, {}, {"a": 2}, {"a": 2}, ["a"]),
    ],
)
def test_entries_are_taken_from_the_side_that_changed_them(
    base: Mapping[str, int], ours: Mapping[str, int], theirs: Mapping[str, int], merged: object, both: list[str]
) -> None:
    assert merge_entries(base, ours, theirs) == (merged, both)


def clone(origin: Path, to: Path) -> Workspace:
    git(to.parent, "clone", "-q", str(origin), str(to))
    for key, value in {"user.name": "test", "user.email": "test@example.org"}.items():
        git(to, "config", key, value)
    return Workspace(to)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a pipeline of one stage for each target, and a DVC remote."""
    box = tmp_path_factory.mktemp("share")
    git(box, "init", "-q", "--bare", "-b", "main", "origin")
    ws = clone(box / "origin", box / "first")
    git(ws.root, "checkout", "-q", "-b", "main")
    dvc(ws.root, "init", "-q")
    dvc(ws.root, "remote", "add", "-d", "store", str(box / "remote"))
    (ws.root / "params.yaml").write_text("one: 1\n")
    (ws.root / "dvc.yaml").write_text(
        "vars: [data/targets.yaml]\nstages:\n  evaluate:\n    foreach: ${targets}\n    do:\n"
        '      cmd: echo "${key} ${item.fingerprint}" > "out-${key}"\n      outs: ["out-${key}"]\n'
    )
    ws.data.mkdir()
    save_targets(ws.targets_file, Targets())
    (ws.root / ".gitignore").write_text("out-*\n")
    git(ws.root, "add", ".")
    git(ws.root, "commit", "-q", "-m", "start")
    git(ws.root, "push", "-q", "-u", "origin", "main")
    return box


@pytest.fixture
def box(started: Path, tmp_path: Path) -> Path:
    git(tmp_path, "clone", "-q", "--bare", str(started / "origin"), str(tmp_path / "origin"))
    return tmp_path


def record(ws: Workspace, name: str, *, content: str = "1", sequence: int = 0) -> None:
    """What a run of a target leaves in files that clones share."""
    entry = Target(source=f"tiny://{name}", task="topic", fingerprint=content)
    targets = load_targets(ws.targets_file)
    save_targets(ws.targets_file, targets.model_copy(update={"targets": {**targets.targets, name: entry}}))
    path = ws.root / "dvc.lock"
    lock: Any = load_yaml(path) if path.is_file() else {"schema": "2.0", "stages": {}}
    lock["stages"][f"evaluate@{name}"] = {"cmd": "x", "outs": [{"path": f"out-{name}", "md5": content}]}
    path.write_text(dump_yaml(lock))
    (ws.root / SEEN).write_text(json.dumps({"record": f"sha256:{sequence:064x}", "sequence": sequence}) + "\n")
    commit_files(ws.root, f"realign: {name}", ["data/targets.yaml", "dvc.lock", SEEN])


def stages(ws: Workspace) -> dict[str, str]:
    return {name: entry["outs"][0]["md5"] for name, entry in load_yaml(ws.root / "dvc.lock")["stages"].items()}


def test_commits_of_several_clones_at_once_all_arrive(box: Path) -> None:
    clones = [clone(box / "origin", box / f"clone-{number}") for number in range(4)]
    for number, ws in enumerate(clones):
        record(ws, f"target-{number}", sequence=number)
    threads = [threading.Thread(target=share_commits, args=(ws,)) for ws in clones]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = clone(box / "origin", box / "last")
    assert set(stages(last)) == {f"evaluate@target-{number}" for number in range(4)}
    assert set(load_targets(last.targets_file).targets) == {f"target-{number}" for number in range(4)}
    assert json.loads((last.root / SEEN).read_text())["sequence"] == 3
    assert len(git(last.root, "log", "--no-merges", "--format=%s", "--grep", "realign").split("\n")) == 4


def test_an_entry_that_both_changed_is_the_upstreams_and_is_named(box: Path) -> None:
    one, other = (clone(box / "origin", box / name) for name in ("one", "other"))
    record(one, "same", content="1")
    record(other, "same", content="2")
    assert share_commits(one).again == ()
    shared = share_commits(other, lambda _: None)
    assert (shared.upstream, shared.again) == ("origin/main", ("evaluate@same", "targets same"))
    assert stages(other) == {"evaluate@same": "1"}
    assert git(other.root, "status", "--porcelain") == ""


def test_another_conflict_stops_the_merge_and_leaves_the_clone_as_it_was(box: Path) -> None:
    one, other = (clone(box / "origin", box / name) for name in ("one", "other"))
    for ws, value in ((one, 2), (other, 3)):
        record(ws, ws.root.name)
        (ws.root / "params.yaml").write_text(f"one: {value}\n")
        git(ws.root, "commit", "-q", "-a", "-m", "people")
    share_commits(one)
    before = git(other.root, "rev-parse", "HEAD")
    with pytest.raises(SafegeneError, match=r"conflicts in params\.yaml"):
        share_commits(other)
    assert git(other.root, "rev-parse", "HEAD") == before
    assert git(other.root, "status", "--porcelain") == ""
    assert stages(other) == {"evaluate@other": "1"}
    (other.root / "params.yaml").write_text("one: 4\n")
    with pytest.raises(SafegeneError, match="expected to merge"):
        share_commits(other)
    assert (other.root / "params.yaml").read_text() == "one: 4\n", "what is not committed stays"


@pytest.mark.parametrize("step", ["write_file", "git"])
def test_a_merge_of_a_killed_run_is_taken_back_and_done_again(
    box: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Killed when the first merged file was written, and when all were."""
    one, other = (clone(box / "origin", box / name) for name in ("one", "other"))
    for number, ws in enumerate((one, other)):
        record(ws, ws.root.name, sequence=number)
    share_commits(one)

    def killed(*given: Any) -> str:
        if step == "git" and given[1] != "commit":
            return own_git(*given)
        if step == "write_file":
            write_file(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(share, step, killed)
        with pytest.raises(KeyboardInterrupt):
            share_commits(other)
    assert (other.root / ".git" / "MERGE_HEAD").is_file()
    assert share_commits(other).upstream == "origin/main"
    assert set(stages(other)) == {"evaluate@one", "evaluate@other"}
    assert git(other.root, "status", "--porcelain") == ""


def test_a_merge_of_people_is_left_alone(box: Path) -> None:
    one, other = (clone(box / "origin", box / name) for name in ("one", "other"))
    for ws in (one, other):
        record(ws, ws.root.name)
    share_commits(one)
    git(other.root, "fetch", "-q")
    git(other.root, "merge", "-q", "--no-commit", "-s", "ours", "@{upstream}")
    with pytest.raises(SafegeneError, match="got one by hand"):
        share_commits(other)
    assert (other.root / ".git" / "MERGE_HEAD").is_file()


def test_a_branch_without_an_upstream_is_not_pushed(box: Path) -> None:
    ws = clone(box / "origin", box / "one")
    git(ws.root, "checkout", "-q", "-b", "mine")
    record(ws, "topic")
    assert share_commits(ws).upstream == ""


def test_an_upstream_that_is_gone_is_an_error_at_once(box: Path) -> None:
    ws = clone(box / "origin", box / "one")
    record(ws, "topic")
    (box / "origin").rename(box / "gone")
    with pytest.raises(SafegeneError, match="git fetch"):
        share_commits(ws)


def test_a_commit_whose_process_was_killed_right_after_is_merged(box: Path) -> None:
    """Git's index is behind HEAD then."""
    one, other = (clone(box / "origin", box / name) for name in ("one", "other"))
    record(one, "one")
    share_commits(one)
    index = (other.root / ".git" / "index").read_bytes()
    record(other, "other")
    (other.root / ".git" / "index").write_bytes(index)
    assert share_commits(other).upstream == "origin/main"
    assert set(stages(other)) == {"evaluate@one", "evaluate@other"}
    assert git(other.root, "status", "--porcelain") == ""


MEETING = (
    'touch {place}/${{key}}; i=0; while [ "$(ls {place} | wc -l)" -lt 2 ]; '
    "do i=$((i+1)); [ $i -lt 1200 ] || exit 1; sleep 0.05; done; "
)
"""Of a stage: it ends only while the same stage of another target runs; after a minute without one it fails."""


def run_target(ws: Workspace) -> str:
    """What a run of one target does with DVC and Git, each in a process of its own."""
    name = ws.root.name
    entry = Target(source=f"tiny://{name}", task="topic", fingerprint=name)
    save_targets(ws.targets_file, Targets(targets={name: entry}))
    dvc(ws.root, "repro", "-q", "--single-item", f"evaluate@{name}")
    commit_files(ws.root, f"realign: {name}", ["data/targets.yaml", "dvc.lock"])
    dvc(ws.root, "push", "-q")
    return share_commits(ws).upstream


def test_a_third_clone_pulls_what_two_clones_ran_at_once(box: Path) -> None:
    """With the real DVC and Git: each in a worktree of its own clone, both at work at the same moment."""
    made, place = list[Workspace](), box / "place"
    place.mkdir()
    first = clone(box / "origin", box / "first")
    dvc(first.root, "remote", "modify", "store", "url", str(box / "remote"))
    dvc(first.root, "remote", "modify", "store", "verify", "true")
    pipeline = (first.root / "dvc.yaml").read_text()
    (first.root / "dvc.yaml").write_text(pipeline.replace("cmd: ", f"cmd: {MEETING.format(place=place)}"))
    git(first.root, "commit", "-q", "-a", "-m", "a stage that meets the other")
    git(first.root, "push", "-q")
    for name in ("one", "other"):
        ws = clone(box / "origin", box / name)
        git(ws.root, "worktree", "add", "-q", "-b", f"run-{name}", str(box / f"run-{name}"), "origin/main")
        made.append(Workspace(box / f"run-{name}"))
    with ThreadPoolExecutor() as threads:
        assert [*threads.map(run_target, made)] == ["origin/main", "origin/main"]
    third = clone(box / "origin", box / "third")
    assert set(stages(third)) == {"evaluate@run-one", "evaluate@run-other"}
    dvc(third.root, "pull", "-q")
    assert "up to date" in dvc(third.root, "status")
    for ws in made:
        assert (third.root / f"out-{ws.root.name}").read_text() == f"{ws.root.name} {ws.root.name}\n"
    flip_byte(next((box / "remote").rglob("??/*")))
    shutil.rmtree(third.root / ".dvc" / "cache")
    for ws in made:
        (third.root / f"out-{ws.root.name}").unlink()
    dvc(third.root, "pull", "-q", code=(1, 255))


def test_a_push_is_silent_about_targets_that_no_run_has_evaluated(box: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from flows.tasks import push

    ws = clone(box / "origin", box / "one")
    dvc(ws.root, "remote", "modify", "--local", "store", "url", str(box / "remote"))
    entries = {name: Target(source=f"tiny://{name}", task="topic", fingerprint=name) for name in ("one", "other")}
    save_targets(ws.targets_file, Targets(targets=entries))
    dvc(ws.root, "repro", "-q", "--single-item", "evaluate@one")
    push.fn(str(ws.root))
    assert len([*(box / "remote").rglob("??/*")]) == 1
    assert "version info" not in capfd.readouterr().err
