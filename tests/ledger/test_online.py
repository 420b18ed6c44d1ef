"""What an audit says of sources and the DVC remote: the same, changed, not reached, not asked."""

from pathlib import Path

import pytest

from safegene.errors import SourceError
from safegene.ledger import online
from safegene.ledger.online import check_online
from safegene.pipeline.stages.promote import rollback
from safegene.workspace.git import git
from safegene.workspace.layout import Workspace
from tests.factories.commands import dvc, run
from tests.factories.ledger import TARGET, attempt, ledger_of

BASE, FINE_TUNE = "tiny://aligned?seed=0", f"tiny://{TARGET}?seed=0"


@pytest.fixture
def held(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Source -> what it holds now; a source that is not in it does not answer. A target is live, and was before."""
    assert [attempt(ws, alpha=1.0), attempt(ws, alpha=2.0)] == ["pass", "pass"]
    held = {BASE: "sha256:0", FINE_TUNE: ws.targets.targets[TARGET].fingerprint}

    def fingerprint(uri: str) -> str:
        if uri not in held:
            raise SourceError("expected an answer, got none")
        return held[uri]

    monkeypatch.setattr(online, "fingerprint", fingerprint)
    return held


def test_sources_that_hold_what_the_records_name_are_counted(ws: Workspace, held: dict[str, str]) -> None:
    report = check_online(ws, ledger_of(ws))
    assert (report.problems, report.sources) == ((), len(held))


def test_a_changed_source_is_a_problem(ws: Workspace, held: dict[str, str]) -> None:
    held[FINE_TUNE] = "sha256:other"
    (problem,) = check_online(ws, ledger_of(ws)).problems
    assert problem.endswith(f"got sha256:other: the source was changed after the record, at {FINE_TUNE}")
    rollback(ws, TARGET)
    assert "as record 2 says" in check_online(ws, ledger_of(ws)).problems[0]


def test_a_source_that_does_not_answer_is_a_note(ws: Workspace, held: dict[str, str]) -> None:
    del held[FINE_TUNE]
    report = check_online(ws, ledger_of(ws))
    assert (report.problems, report.sources) == ((), 1)
    assert report.notes[0] == f"not reached: {FINE_TUNE}, named by record 1: expected an answer, got none"


def test_the_time_is_bounded_and_what_was_not_asked_is_said(ws: Workspace, held: dict[str, str]) -> None:
    report = check_online(ws, ledger_of(ws), seconds=-1)
    assert (report.problems, report.sources) == ((), 0)
    assert report.notes[0].endswith("2 of 2 sources")


def test_artefacts_that_are_not_on_the_remote_are_named(ws: Workspace, held: dict[str, str], tmp_path: Path) -> None:
    assert any(note.startswith("not reached: the DVC remote") for note in check_online(ws, ledger_of(ws)).notes)
    git(ws.root, "init", "--quiet", "--initial-branch=main")
    dvc(ws.root, "init", "--quiet")
    dvc(ws.root, "remote", "add", "--default", "store", str(tmp_path / "remote"))
    dvc(ws.root, "add", "--quiet", "data/family/vector", f"data/targets/{TARGET}/verdict")
    dvc(ws.root, "push", "--quiet", "data/family/vector.dvc")
    (note,) = check_online(ws, ledger_of(ws)).notes
    assert note.endswith(f"(`dvc push`): data/targets/{TARGET}/verdict")
    dvc(ws.root, "push", "--quiet")
    assert check_online(ws, ledger_of(ws)).notes == ()


def test_the_command_asks_only_where_it_is_told(ws: Workspace) -> None:
    assert attempt(ws) == "pass"
    assert "sources" not in run(ws.root, "audit", "verify").stdout
    printed = run(ws.root, "audit", "verify", "--online", code=1).stdout
    assert "the source was changed after the record, at tiny://aligned?seed=0" in printed
