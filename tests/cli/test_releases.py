"""``promote``, ``rollback``, ``export`` and ``merge``: exit codes, what they commit, and what never passed."""

from pathlib import Path

import pytest

from safegene.workspace.git import git
from safegene.workspace.layout import Workspace
from tests.factories.commands import call
from tests.factories.ledger import TARGET, attempt, ledger_of, make_target, make_verdict, make_workspace, records
from tests.pipeline.test_tracked import in_git, names_at_head


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """A workspace in Git, run up to a passing verdict."""
    return in_git(make_workspace(tmp_path / "ws"))


@pytest.mark.parametrize(("outcome", "code"), [("pass", 0), ("fail", 3), ("inconclusive", 4)])
def test_a_dry_run_exits_as_the_promotion_would(ws: Workspace, outcome: str, code: int) -> None:
    make_verdict(ws, outcome=outcome)
    said = call(ws.root, "promote", TARGET, "--dry-run", code=code).stdout
    assert "dry run, nothing written" in said
    assert records(ws) == []
    assert git(ws.root, "log", "--format=%s") == "empty"
    call(ws.root, "promote", TARGET, code=code)


def test_a_dry_run_of_what_waits_for_others_or_is_measured_against_something_else(ws: Workspace) -> None:
    params = ws.root / "params.yaml"
    params.write_text(params.read_text().replace('ledger: "ledger"', 'ledger: "ledger", signatures: 2'))
    assert "after 2 signatures" in call(ws.root, "promote", TARGET, "--dry-run", code=4).stdout
    params.write_text(params.read_text().replace(", signatures: 2", ""))
    attempt(ws)
    make_target(ws, alpha=0.5)  # its verdict was measured when nothing was live
    assert "would be refused (error)" in call(ws.root, "promote", TARGET, "--dry-run", code=1).stdout
    call(ws.root, "promote", TARGET, code=1)


def test_what_changes_the_ledger_commits_it_and_nothing_else(ws: Workspace) -> None:
    (ws.root / "notes.md").write_text("mine\n")
    git(ws.root, "add", "notes.md")
    first = call(ws.root, "promote", TARGET).stdout
    assert "committed ledger and ledger.seen as " in first
    assert git(ws.root, "log", "-1", "--format=%s") == f"promote {TARGET}"
    assert not {name for name in names_at_head(ws) if not name.startswith("ledger")}
    assert git(ws.root, "diff", "--cached", "--name-only") == "notes.md", "what else is staged stays staged"
    attempt(ws, alpha=0.5)
    call(ws.root, "rollback", TARGET)
    assert git(ws.root, "log", "-1", "--format=%s") == f"rollback {TARGET}"
    assert git(ws.root, "status", "--porcelain", "--", "ledger", "ledger.seen") == ""
    live = records(ws)[0].artefacts["candidate"]
    call(ws.root, "audit", "revoke", live, "--reason", "poisoned")
    assert git(ws.root, "log", "-1", "--format=%s") == f"revoke {live}"
    assert git(ws.root, "status", "--porcelain", "--", "ledger", "ledger.seen") == ""


def test_a_refusal_is_on_record_and_committed(ws: Workspace) -> None:
    make_verdict(ws, outcome="fail")
    call(ws.root, "promote", TARGET, code=3)
    assert records(ws)[0].outcome == "fail"
    assert git(ws.root, "log", "-1", "--format=%s") == f"promote {TARGET}"


def test_without_commits_it_says_what_to_commit_and_that_helps(ws: Workspace) -> None:
    params = ws.root / "params.yaml"
    params.write_text(params.read_text() + "flow: {commit: false}\n")
    said = call(ws.root, "promote", TARGET).stdout
    assert git(ws.root, "log", "--format=%s") == "empty"
    remedy = said[said.index("commit it: `git ") + len("commit it: `git ") :].partition("`")[0]
    add, commit = remedy.split(" && git ")
    git(ws.root, *add.split())
    git(ws.root, *commit.replace("'", "").split(" ", 2))
    assert git(ws.root, "status", "--porcelain", "--", "ledger", "ledger.seen") == ""
    assert ledger_of(ws).start()


@pytest.mark.parametrize("command", ["export", "merge"])
@pytest.mark.parametrize("outcome", ["fail", "inconclusive"])
def test_what_never_passed_is_not_written_unasked(ws: Workspace, tmp_path: Path, command: str, outcome: str) -> None:
    make_verdict(ws, outcome=outcome)
    refused = call(ws.root, command, TARGET, str(tmp_path / "out"), code=3)
    assert refused.error
    assert f"got one whose verdict is {outcome}" in refused.error.message
    assert "--unverified" in refused.error.remedy
    assert not (tmp_path / "out").exists()
