"""What Git tracks of a workspace: all of the ledger, whatever ignore rules say, and no artefact."""

import shutil
from pathlib import Path

import pytest

from flows.tasks import commit
from safegene.ledger import RecordDraft, load_signer, open_ledger, read_state
from safegene.pipeline.init import init
from safegene.pipeline.runner import reproduce, run_stage
from safegene.pipeline.table import PIPELINE
from safegene.pipeline.tracked import committed_artefacts, indexed_artefacts, tracked_files
from safegene.workspace.git import git
from safegene.workspace.layout import Workspace
from tests.factories.ledger import TARGET, attempt, make_workspace, problems_of

VALIDATE = next(stage for stage in PIPELINE if stage.name == "validate")


def in_git(ws: Workspace) -> Workspace:
    git(ws.root, "init", "--quiet", "--initial-branch=main")
    for key, value in (("user.name", "a"), ("user.email", "a@localhost")):
        git(ws.root, "config", key, value)
    git(ws.root, "commit", "--quiet", "--allow-empty", "-m", "empty")
    return ws


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """A workspace in Git with one promotion, nothing of it committed."""
    ws = in_git(make_workspace(tmp_path / "ws"))
    assert attempt(ws) == "pass"
    return ws


def names_at_head(ws: Workspace) -> set[str]:
    return set(git(ws.root, "ls-tree", "-r", "--name-only", "HEAD").splitlines())


@pytest.mark.parametrize(
    "place", ["ledger/.gitignore", "ledger/records/.gitignore", "data/.gitignore", ".git/info/exclude"]
)
def test_a_planted_ignore_rule_hides_no_part_of_the_ledger(ws: Workspace, place: str) -> None:
    (ws.root / place).write_text("*\n")
    commit.fn(str(ws.root), "realign")
    ledger = {f"ledger/{path.relative_to(ws.root / 'ledger').as_posix()}" for path in (ws.root / "ledger").rglob("*")}
    files = {name for name in ledger if (ws.root / name).is_file() and not name.endswith(".gitignore")}
    assert len(files) > 10
    assert names_at_head(ws) >= {*files, "ledger.seen", "data/targets.yaml", f"data/targets/{TARGET}/incumbent.json"}
    git(ws.root, "clone", "--quiet", ".", "../clone")
    clone = Workspace(ws.root.parent / "clone")
    for name in ("params.yaml", "dvc.yaml", "ledger.pub"):
        (clone.root / name).write_bytes((ws.root / name).read_bytes())
    assert problems_of(clone) == []


def test_artefacts_are_not_committed_although_dvc_has_not_ignored_them(ws: Workspace) -> None:
    commit.fn(str(ws.root), "realign")
    assert not [name for name in names_at_head(ws) if "/candidate/" in name and name.startswith("data/")]
    assert f"data/targets/{TARGET}/incumbent.json" in names_at_head(ws)
    assert committed_artefacts(ws) == []


def test_data_that_users_ignore_stays_out(ws: Workspace) -> None:
    (ws.root / ".gitignore").write_text("/data/prompts/private.jsonl\n")
    (ws.prompts / "private.jsonl").write_text("{}\n")
    assert "data/prompts/private.jsonl" not in tracked_files(ws)
    assert "data/prompts/gate.jsonl" in tracked_files(ws)


def test_a_run_commits_what_it_used_and_nothing_else_of_the_user(ws: Workspace) -> None:
    """Parameters that were edited before the run are in the commit of its results; a note beside them is not."""
    others = ("notes.md", "data/notes.md", "data/prompts.bak/gate.jsonl", "ledger.pub")
    for name in others:
        (ws.root / name).parent.mkdir(exist_ok=True)
        (ws.root / name).touch()
    params = ws.root / "params.yaml"
    params.write_text(params.read_text() + "compress: {rank: 8}\n")
    commit.fn(str(ws.root), "realign")
    assert names_at_head(ws) >= {"params.yaml", "dvc.yaml", "data/prompts/gate.jsonl", "data/tasks/sentiment.jsonl"}
    assert "rank: 8" in git(ws.root, "show", "HEAD:params.yaml")
    assert not names_at_head(ws) & set(others)


def test_artefacts_that_were_committed_by_mistake_leave_git(ws: Workspace) -> None:
    git(ws.root, "add", "--all")
    git(ws.root, "commit", "--quiet", "-m", "everything")
    assert f"data/targets/{TARGET}/checkpoint" in committed_artefacts(ws)
    commit.fn(str(ws.root), "realign")
    assert committed_artefacts(ws) == []
    assert (ws.checkpoint(TARGET) / "checkpoint.json").is_file()


def test_a_stage_whose_output_git_tracks_runs_all_the_same(tmp_path: Path) -> None:
    ws = init(tmp_path / "ws")
    run_stage(VALIDATE, ws)
    git(ws.root, "add", "--all", "--force")
    git(ws.root, "commit", "--quiet", "-m", "everything")
    assert indexed_artefacts(ws) == ["data/validation"]
    assert reproduce(VALIDATE, ws)
    commit.fn(str(ws.root), "realign")
    assert indexed_artefacts(ws) == committed_artefacts(ws) == []
    assert not reproduce(VALIDATE, ws)


def test_a_workspace_made_again_in_its_place_is_a_new_one(tmp_path: Path) -> None:
    for _ in range(2):
        ws = init(tmp_path / "ws")
        ledger = open_ledger(ws.params.promote, ws.root)
        ledger.append(RecordDraft("fail", "t", "production", "r", {}, {}), load_signer(ledger.keys))
        assert read_state(open_ledger(ws.params.promote, ws.root))
        shutil.rmtree(ws.root)
