"""What a run does before and after its work: an event of decided work starts nothing; a commit follows its data."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from flows import realign
from safegene.errors import SafegeneError
from safegene.pipeline.watched import following, read_discoveries, to_announce
from safegene.workspace.layout import Workspace
from safegene.workspace.params import Targets
from tests.factories.ledger import TARGET, make_workspace


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path / "ws")


def test_an_event_of_decided_work_evaluates_nothing(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = to_announce(ws, Targets(), ws.targets).values()
    with following(ws, TARGET, "first", found.work) as followed:
        followed.outcome = "fail"
    monkeypatch.setattr(realign, "require_ready", lambda *_, **__: pytest.fail("it went on"))
    for _ in range(100):
        state: Any = realign.realign.fn(str(ws.root), [TARGET], trigger="event", work=found.work)
        assert (state.name, state.message.partition(",")[0]) == ("Duplicate", "decided already")


def test_a_run_that_cannot_fetch_has_failed_and_is_tried_again(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(_: str) -> None:
        raise SafegeneError("expected an answer of the upstream, got none")

    (found,) = to_announce(ws, Targets(), ws.targets).values()
    monkeypatch.setattr(realign, "update", fetch)
    with pytest.raises(SafegeneError, match="of the upstream"):
        realign.realign.fn(str(ws.root), [TARGET], trigger="event", work=found.work)
    (row,) = read_discoveries(ws, TARGET)
    assert (row.state, row.tries) == ("failed", 1)
    assert "of the upstream" in row.why


@pytest.mark.parametrize("broken", ["commit", "push", ""])
def test_a_commit_is_shared_after_its_data(ws: Workspace, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    done: list[str] = []

    def step(name: str) -> None:
        done.append(name)
        if name == broken:
            raise SafegeneError("expected an answer, got none")

    path = ws.root / "params.yaml"
    path.write_text(path.read_text() + "flow: {push: true, push_commits: true}\n")
    for name in ("_report", "commit", "push", "share"):
        monkeypatch.setattr(realign, name, lambda *_, name=name: step(name))
    errors = realign.follow_up(Workspace(ws.root), "realign", "topic pass", [TARGET], keeps=True)
    assert done == ["_report", "commit", "push", *([] if broken else ["share"])]
    assert len(errors) == bool(broken)


def test_a_worker_finds_the_flows_wherever_it_was_installed(ws: Workspace) -> None:
    """A path of files would be that of the worker which registered last, relative to its clone."""
    from flows.deployments import deployments

    for deployment in deployments(ws):
        module, _, name = str(deployment.entrypoint).rpartition(".")
        assert getattr(import_module(module), name).name == deployment.flow_name
