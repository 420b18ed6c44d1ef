"""What is committed is what is named: no ignore rule, filter or staged file changes that."""

import subprocess
from pathlib import Path

import pytest

from safegene.errors import SafegeneError
from safegene.workspace.git import commit_files, committed, git


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
