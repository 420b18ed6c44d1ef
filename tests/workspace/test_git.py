"""What is committed is what is named: no ignore rule, filter or staged file changes that."""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from safegene.errors import SafegeneError
from safegene.workspace import git as module
from safegene.workspace.git import commit_files, committed, git, update_index


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository with one commit, which holds the file ``first``."""
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    for key, value in (("user.name", "a"), ("user.email", "a@localhost")):
        git(tmp_path, "config", key, value)
    (tmp_path / "first").write_text("1")
    git(tmp_path, "add", "first")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path


def names_at_head(repo: Path) -> list[str]:
    return git(repo, "ls-tree", "-r", "--name-only", "HEAD").splitlines()


@pytest.mark.parametrize("rule", ["*\n", "records/\n", "*.json\n", "!*\n"])
def test_an_ignore_rule_leaves_out_nothing_that_is_named(repo: Path, rule: str) -> None:
    (repo / "ledger" / "records").mkdir(parents=True)
    (repo / "ledger" / ".gitignore").write_text(rule)
    for name in ("ledger/tip", "ledger/records/a.json"):
        (repo / name).write_text("x")
    head = commit_files(repo, "two", ["ledger/tip", "ledger/records/a.json"])
    assert names_at_head(repo) == ["first", "ledger/records/a.json", "ledger/tip"]
    assert head == git(repo, "rev-parse", "HEAD")
    assert git(repo, "status", "--porcelain", "--untracked-files=no") == ""
    assert commit_files(repo, "again", ["ledger/tip", "ledger/records/a.json"]) == head


def test_what_else_is_staged_stays_staged_and_uncommitted(repo: Path) -> None:
    for name in ("mine", "named"):
        (repo / name).write_text("x")
    git(repo, "add", "mine")
    commit_files(repo, "named", ["named"])
    assert names_at_head(repo) == ["first", "named"]
    assert git(repo, "diff", "--cached", "--name-only") == "mine"


def test_names_are_literal(repo: Path) -> None:
    for name in ("a[1]*.json", "a1.json"):
        (repo / name).write_text("x")
    commit_files(repo, "odd", ["a[1]*.json"])
    assert names_at_head(repo) == ["a[1]*.json", "first"]


def test_what_must_not_be_tracked_leaves_git_and_stays_here(repo: Path) -> None:
    (repo / "artefact").mkdir()
    (repo / "artefact" / "weights").write_text("x")
    git(repo, "add", "artefact")
    git(repo, "commit", "--quiet", "-m", "by mistake")
    commit_files(repo, "out", [], untracked=["artefact"])
    assert names_at_head(repo) == ["first"]
    assert git(repo, "ls-files") == "first"
    assert (repo / "artefact" / "weights").read_text() == "x"


def test_a_rule_that_changes_bytes_is_found(repo: Path) -> None:
    (repo / ".gitattributes").write_text("* text\n")
    (repo / "record").write_bytes(b"a\r\nb\r\n")
    with pytest.raises(SafegeneError, match=r"hold the bytes of record, got others: a filter or \.gitattributes"):
        commit_files(repo, "record", ["record"])


def test_a_refused_commit_leaves_the_index_as_it_was(repo: Path) -> None:
    hook = repo / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho not today >&2\nexit 1\n")
    hook.chmod(0o755)
    (repo / "named").write_text("x")
    with pytest.raises(SafegeneError, match="not today"):
        commit_files(repo, "named", ["named"])
    assert git(repo, "diff", "--cached", "--name-only") == ""


def test_what_head_holds_is_read_at_once(repo: Path) -> None:
    (repo / "below").mkdir()
    (repo / "below" / "second").write_bytes(b"two\nlines \n")
    commit_files(repo, "second", ["below/second"])
    (repo / "first").write_text("changed")
    assert committed(repo, "first", "none", "below/second") == {"first": b"1", "below/second": b"two\nlines \n"}
    assert committed(repo / "below", "second") == {"second": b"two\nlines \n"}
    assert committed(repo, "below") == {}


def test_without_a_repository_or_a_commit_head_holds_nothing(tmp_path: Path) -> None:
    assert committed(tmp_path, "a") == {}
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert committed(tmp_path, "a") == {}


LOCKS = ("index.lock", "HEAD.lock", "refs/heads/main.lock")


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_that_a_killed_process_has_left_is_removed(repo: Path, name: str) -> None:
    lock = repo / ".git" / name
    lock.touch()
    os.utime(lock, (1e9, 1e9))  # before any process of this machine began
    (repo / "named").write_text("x")
    commit_files(repo, "named", ["named"])
    assert names_at_head(repo) == ["first", "named"]
    assert not lock.exists()


def test_a_lock_from_the_future_is_not_waited_for_until_then(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.2)
    monkeypatch.setattr(module, "_git_programs", lambda began_by: [])  # those of other tests began before the future
    lock = repo / ".git" / "index.lock"
    lock.touch()
    os.utime(lock, (9e9, 9e9))
    module.git(repo, "add", "--all")
    assert not lock.exists()


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_of_another_process_is_waited_for(repo: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "log", None)  # removing it would be logged
    lock = repo / ".git" / name
    lock.touch()
    (repo / "named").write_text("x")
    released = threading.Timer(0.5, lock.unlink)
    released.start()
    commit_files(repo, "named", ["named"])
    released.join()
    assert names_at_head(repo) == ["first", "named"]


@contextmanager
def git_program(repo: Path) -> Iterator[None]:
    """A Git program that runs for the block."""
    command = ["git", "-C", str(repo), "cat-file", "--batch"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        yield
        assert program.stdin is not None
        program.stdin.close()


def test_a_lock_that_somebody_may_hold_stays_and_the_remedy_helps(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.1)
    lock = repo / ".git" / "index.lock"
    (repo / "named").write_text("x")
    with git_program(repo):
        lock.touch()
        with pytest.raises(SafegeneError, match=r"Git's lock .*/index\.lock to be released, got one from") as caught:
            commit_files(repo, "named", ["named"])
    assert lock.exists()
    assert caught.value.remedy is not None
    subprocess.run(caught.value.remedy.split("`")[1], shell=True, check=True)
    commit_files(repo, "named", ["named"])
    assert names_at_head(repo) == ["first", "named"]


def test_git_speaks_english(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since its messages are read: those of a lock, and of a push that lost a race."""
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("LANGUAGE", "de")
    assert git(repo, "-c", "alias.language=!echo $LC_ALL $LANGUAGE", "language") == "C.UTF-8 C"


def test_the_index_follows_a_commit_whose_process_was_killed_right_after(repo: Path) -> None:
    """Then Git would refuse to merge, and `git commit` would take back what was committed."""
    (repo / "mine").write_text("1")
    git(repo, "add", "mine")
    index = (repo / ".git" / "index").read_bytes()
    for name in ("first", "second"):
        (repo / name).write_text("2")
    commit_files(repo, "both", ["first", "second"])
    (repo / ".git" / "index").write_bytes(index)
    assert git(repo, "diff", "--cached", "--name-only").split() == ["first", "mine", "second"]
    update_index(repo)
    assert git(repo, "diff", "--cached", "--name-only") == "mine"
    assert git(repo, "status", "--porcelain") == "A  mine"


def test_what_people_have_staged_stays_in_the_index(repo: Path) -> None:
    (repo / "first").write_text("2")
    commit_files(repo, "second", ["first"])
    for content in ("1", "3"):  # as the commit before has it, and not
        (repo / "first").write_text(content)
        git(repo, "add", "first")
        update_index(repo)
        assert git(repo, "diff", "--cached", "--name-only") == "first"
