"""One vector, many targets: the ledger says where it was used and with what effect; costs are in no digest."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from safegene.pipeline.runner import run_stage
from safegene.pipeline.stages.promote import pin_incumbent, promote_attempt, revoke
from safegene.pipeline.table import stage_named
from safegene.report.reuse import VectorUse, plain, reuse, table
from safegene.workspace.costs import cost_of, note_cost
from safegene.workspace.digest import digest_json
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest
from tests.factories.commands import dvc, git, run
from tests.factories.ledger import TARGET, flip_byte, make_family, make_target, make_verdict, make_workspace


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    return make_workspace(tmp_path / "ws")


def realign(ws: Workspace, target: str = TARGET, *, outcome: str = "pass", alpha: float = 1.0) -> str:
    make_target(ws, target, alpha=alpha)
    pin_incumbent(ws, target)
    make_verdict(ws, target, outcome=outcome)
    return promote_attempt(ws, target)


def digest(folder: Path) -> str:
    return read_manifest(folder).digest


def text_of(vector: VectorUse) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(vector))
    return console.export_text()


def test_every_target_that_a_vector_was_applied_to_is_listed_with_its_effect(ws: Workspace) -> None:
    realign(ws)
    realign(ws, "topic", outcome="fail")
    (vector,) = reuse(ws)
    assert vector.vector == digest(ws.vector)
    assert vector.present
    assert [(use.target, use.outcome) for use in vector.uses] == [("sentiment", "pass"), ("topic", "fail")]
    passed, failed = vector.uses
    assert passed.live
    assert failed.live is None
    assert passed.rates["hrr"] == (0.0, 0.0)
    assert failed.rates["hrr"][1] == 1.0
    assert [use.record for use in vector.uses] == [0, 1]
    json.dumps(plain((vector,)), allow_nan=False)
    assert "100.0" in text_of(vector)


def test_a_new_vector_takes_over_and_the_earlier_ones_uses_stay_on_record(ws: Workspace) -> None:
    realign(ws)
    realign(ws, "topic")
    earlier = digest(ws.vector)
    make_family(ws, rank=5)
    realign(ws, alpha=2.0)
    now, before = reuse(ws)
    assert (now.vector, before.vector) == (digest(ws.vector), earlier)
    assert (now.present, before.present) == (True, False)
    assert [(use.target, bool(use.live)) for use in now.uses] == [(TARGET, True)]
    assert [(use.target, bool(use.live)) for use in before.uses] == [(TARGET, False), ("topic", True)]


def test_of_several_attempts_the_last_counts_and_their_number_is_said(ws: Workspace) -> None:
    realign(ws, outcome="fail")
    realign(ws, alpha=2.0)
    ((use,),) = (vector.uses for vector in reuse(ws))
    assert (use.outcome, use.attempts, use.record) == ("pass", 2, 1)


def test_a_candidate_without_a_record_is_listed_as_that(ws: Workspace) -> None:
    (vector,) = reuse(ws)
    (use,) = vector.uses
    assert (use.outcome, use.record, use.live) == ("pass, not recorded", None, None)
    realign(ws)
    assert [use.outcome for use in reuse(ws)[0].uses] == ["pass"]


def test_an_altered_candidate_is_no_use(ws: Workspace) -> None:
    flip_byte(ws.candidate(TARGET) / "adapter_model.safetensors")
    assert reuse(ws)[0].uses == ()


def test_a_revoked_vector_says_so(ws: Workspace) -> None:
    realign(ws)
    revoke(ws, digest(ws.vector), "taken from the wrong copies")
    (vector,) = reuse(ws)
    assert "wrong copies" in vector.revoked
    assert "wrong copies" in text_of(vector)


def test_costs_are_stated_where_measured_and_never_guessed(ws: Workspace) -> None:
    realign(ws)
    realign(ws, "topic")
    assert "one more target: not measured" in text_of(reuse(ws)[0])
    note_cost(ws.root, digest(ws.candidate(TARGET)), "calibrate@sentiment", 9.0)
    (vector,) = reuse(ws)
    assert (vector.each, vector.each_gated, vector.once) == (9.0, None, None)
    assert [use.cpu_seconds for use in vector.uses] == [9.0, None]
    assert "9.0 (the mean of 1)" in text_of(vector)
    for name, cost in (("checkpoint", 1.0), ("judgements", 7.0), ("verdict", 0.5)):
        note_cost(ws.root, digest(getattr(ws, name)(TARGET)), "", cost)
    assert reuse(ws)[0].each_gated == 17.5
    (entry,) = plain((vector,))
    assert entry["uses"][1]["cpu_seconds"] is None


def test_a_vector_costs_what_all_its_parts_cost(ws: Workspace) -> None:
    costs = {"degraded": 20.0, "delta": 1.0, "vector": 0.5, "selection": 2.0}
    assert VectorUse("v", True, "", (), costs).once == 23.5
    assert VectorUse("v", True, "", (), costs | {"delta": None}).once is None
    assert VectorUse("v", False, "", (), {}).once is None


def test_an_empty_workspace_has_no_vector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safegene.pipeline.init import init

    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    assert reuse(init(tmp_path / "ws")) == ()


# ---- costs


def test_a_cost_is_read_back_and_what_is_unreadable_is_not_measured(tmp_path: Path) -> None:
    artefact = digest_json("one")
    assert cost_of(tmp_path, artefact) is None
    note_cost(tmp_path, artefact, "gate@a", 1.234)
    assert cost_of(tmp_path, artefact) == 1.23
    (path,) = (tmp_path / ".safegene" / "costs").iterdir()
    for broken in ("", "[]", "{}", '{"cpu_seconds": "much"}', '{"cpu_seconds": -1}'):
        path.write_text(broken)
        assert cost_of(tmp_path, artefact) is None, broken
    for name in (None, "", "../../etc/passwd"):
        assert cost_of(tmp_path, name) is None


def test_running_a_stage_notes_its_cost_outside_what_is_digested(ws: Workspace) -> None:
    before = digest(ws.verdict(TARGET))
    done = run_stage(stage_named("gate"), ws, TARGET)
    assert done is not None
    assert done.digest == before, "the same bytes, whatever it cost"
    assert cost_of(ws.root, before) is not None


# ---- from outside


def test_the_command_states_effect_and_cost_of_the_built_run(built: Path) -> None:
    (vector,) = json.loads(run(built, "audit", "reuse", "--json").stdout)["vectors"]
    (use,) = vector["uses"]
    assert vector["vector"] == digest(built / "data/family/vector")
    assert (use["target"], use["outcome"]) == ("sentiment", "pass")
    assert use["rates"]["hrr"]["after"] < use["rates"]["hrr"]["before"]
    assert use["live"]
    assert 0.0 < use["extra_params"] <= 0.01
    assert vector["cpu_seconds_each"] == use["cpu_seconds"] > 0.0
    assert vector["cpu_seconds_once"] > 0.0
    assert vector["cpu_seconds_each_gated"] > vector["cpu_seconds_each"]
    shown = run(built, "audit", "reuse").stdout
    assert "sentiment" in shown
    assert "CPU seconds of calibrating one more target:" in shown


def test_costs_travel_with_neither_git_nor_dvc(built: Path) -> None:
    assert list((built / ".safegene" / "costs").iterdir())
    assert git(built, "ls-files", ".safegene") == ""
    assert git(built, "status", "--porcelain") == ""
    assert "up to date" in dvc(built, "status")
