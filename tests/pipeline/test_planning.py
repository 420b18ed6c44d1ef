"""The plan of a run: what is out of date, how much it is, and how long it takes here."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from safegene.cli.start import need_lines, size_words, time_words
from safegene.errors import ParamsError
from safegene.pipeline import foresee
from safegene.pipeline.init import init
from safegene.pipeline.planning import RunPlan, plan_run, work
from safegene.pipeline.planning import plan as planning
from safegene.pipeline.planning.needs import Need, needs, needs_of, prompts_expected
from safegene.workspace.costs import last_costs, note_cost, work_of
from safegene.workspace.digest import digest_json
from safegene.workspace.layout import Workspace
from safegene.workspace.params import GateParams, Target, save_targets

STATED = {"degrade": 155_595, "calibrate@group": 157_448, "calibrate@sentiment": 161_629, "calibrate@topic": 160_346}
"""Tokens that the artefacts of the demo state (`make demo`), where no target needs a round of mining."""
REPLIES = {"group": 1410, "topic": 1500}
SECONDS = 148.4
"""Seconds of the demo's stages on an idle machine of two cores (README)."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A new workspace with the demo's targets."""
    ws = init(tmp_path_factory.mktemp("plan") / "made")
    tasks = {"sentiment": "sentiment", "topic": "topic", "group": "group", "adversarial": "group"}
    entries = {
        name: Target(source=f"tiny://{name}?seed=0", task=task, fingerprint="sha256:0") for name, task in tasks.items()
    }
    save_targets(ws.targets_file, ws.targets.model_copy(update={"targets": entries}))
    return ws


@pytest.fixture(scope="module")
def cold(made: Workspace) -> RunPlan:
    return plan_run(made)


@pytest.fixture
def ws(made: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(made.root, tmp_path / "ws", symlinks=True)
    return Workspace(tmp_path / "ws")


def test_a_first_run_is_planned_within_thirty_percent_of_the_demo(cold: RunPlan) -> None:
    by_address = {stage.address: stage for stage in cold.stages}
    assert len(by_address) == 6 + 4 * 4
    assert all(stage.runs for stage in cold.stages)
    for address, tokens in STATED.items():
        assert 0.7 < by_address[address].work.tokens / tokens < 1.3, address
    for target, replies in REPLIES.items():
        assert 0.7 < by_address[f"evaluate@{target}"].work.replies / replies < 1.3
    assert 0.7 < cold.seconds / SECONDS < 1.3
    assert {stage.basis for stage in cold.stages} == {"estimate"}


def test_mining_is_counted_where_there_are_rounds_and_with_its_own_constants(ws: Workspace, cold: RunPlan) -> None:
    from safegene.repair import mining

    assert (work.ASKED, work.TASKS) == (mining.ASKED, mining.TASKS)
    path = ws.root / "params.yaml"
    path.write_text(path.read_text().replace("mining: {rounds: 1}", "mining: {rounds: 0}"))
    (ws.prompts / "pool.jsonl").unlink()
    mined, plain = (
        next(stage for stage in planned.stages if stage.address == "calibrate@group")
        for planned in (cold, plan_run(ws))
    )
    assert mined.work.trained == plain.work.trained
    assert mined.work.forward > plain.work.forward
    assert mined.work.prompts > plain.work.prompts
    given = ws.params.calibrate
    steps = given.steps * given.batch_size, given.mining.steps * given.mining.batch_size
    assert mined.further_tokens > 0.85 * plain.work.trained * steps[1] / steps[0]
    assert plain.further_tokens == 0
    assert cold.further_tokens == sum(stage.further_tokens for stage in cold.stages) > mined.further_tokens
    assert mined.further_seconds > 0


def test_every_learning_rate_of_degrade_is_counted_and_those_that_an_earlier_run_needed(
    ws: Workspace, cold: RunPlan
) -> None:
    from safegene.pipeline import surrogates

    assert surrogates.RAISED == work.RAISED
    given, first = ws.params.degrade, cold.stages[2]
    assert first.address == "degrade"
    assert first.further_tokens + first.work.tokens == pytest.approx(6 * first.work.tokens, rel=0.01)
    assert cold.further_seconds > first.further_seconds > 3 * (first.seconds - planning.START["degrade"])
    own = given.surrogates["blunt"].learning_rate
    taken = {"steps": 16, "reached": True}
    records: dict[str, Any] = {name: taken for name in given.surrogates}
    ws.degraded.mkdir(parents=True)

    def trained() -> int:
        (ws.degraded / "degraded.json").write_text(json.dumps({"surrogates": records}))
        return next(stage for stage in plan_run(ws).stages if stage.address == "degrade").work.trained

    once = trained()
    records["blunt"] = {**taken, "learning_rate": 3 * own}
    twice = trained()
    records["blunt"] = {**taken, "learning_rate": 10 * own}
    thrice = trained()
    records["blunt"] = {**taken, "reached": False}
    assert once < twice < thrice < trained()
    assert thrice - twice == pytest.approx(twice - once, rel=0.01), "a whole attempt each"


def test_the_plan_writes_nothing_and_is_plain_json(made: Workspace, cold: RunPlan) -> None:
    content = json.loads(json.dumps(cold.to_json()))
    assert content["tokens"] == cold.tokens
    assert {"stage", "runs", "prompts", "seconds", "basis", "peak_bytes"} <= set(content["stages"][0])
    assert not (made.root / "dvc.lock").exists()
    assert [entry["endpoint"] for entry in content["needs"]][:2] == ["hrr_direct", "asr_wrapped"]


def test_a_chosen_target_is_planned_alone_and_an_unknown_one_refused(made: Workspace) -> None:
    addresses = {stage.address for stage in plan_run(made, ["topic"]).stages}
    assert "calibrate@topic" in addresses
    assert not any(address.endswith("@group") for address in addresses)
    with pytest.raises(ParamsError, match="nobody"):
        plan_run(made, ["nobody"])


def test_times_are_those_of_the_last_run_here_in_proportion_to_the_work(ws: Workspace, cold: RunPlan) -> None:
    size = next(stage.work.size for stage in cold.stages if stage.address == "calibrate@topic")
    note_cost(ws.root, digest_json(1), "calibrate@topic", 99.0, seconds=50.0, work=size / 2)
    note_cost(ws.root, digest_json(2), "fetch", 7.0)
    by_address = {stage.address: stage for stage in plan_run(ws).stages}
    start = planning.START["calibrate"]
    assert by_address["calibrate@topic"].basis == "last run"
    assert by_address["calibrate@topic"].seconds == pytest.approx(start + 2 * (50.0 - start))
    assert by_address["calibrate@group"].basis == "another target"
    assert by_address["fetch"].seconds == 7.0
    assert by_address["degrade"].basis == "estimate"


def test_costs_of_a_stage_are_those_of_its_newest_artefact(tmp_path: Path) -> None:
    import os

    for at, digest in enumerate((digest_json("a"), digest_json("b"))):
        note_cost(tmp_path, digest, "fetch", 10.0 * (at + 1))
        path = tmp_path / ".safegene/costs" / f"{digest.removeprefix('sha256:')}.json"
        os.utime(path, ns=(10**18 + at, 10**18 + at))
    (tmp_path / ".safegene/costs/broken.json").write_text("[]")
    assert last_costs(tmp_path)["fetch"].cpu_seconds == 20.0
    assert work_of({"tokens": {"forward": 3, "trained": 4}, "replies": 9}) == 7
    assert work_of({"replies": 9}) == 9
    assert work_of({}) is None


def test_only_what_changed_and_what_depends_on_it_is_due(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (ws.root / "dvc.lock").touch()
    monkeypatch.setattr(foresee, "_changed", lambda ws: {"compress"})
    due = {stage.address for stage in plan_run(ws, ["topic"]).stages if stage.runs}
    assert due == {"compress", "select", "calibrate@topic", "evaluate@topic", "gate@topic"}
    monkeypatch.setattr(foresee, "_changed", lambda ws: set())
    assert plan_run(ws).seconds == 0


def test_a_workspace_with_a_published_vector_is_planned_without_degraded_copies(ws: Workspace) -> None:
    path = ws.root / "params.yaml"
    vector = f"\n  vector: file:///v\n  publisher: '{'0' * 64}'\n"
    path.write_text(re.sub(r"(?m)^  degraded:.*\n", "", path.read_text()).replace("family:\n", f"family:{vector}", 1))
    (ws.prompts / "degrade.jsonl").unlink()
    by_address = {stage.address: stage for stage in plan_run(ws, ["topic"]).stages}
    assert by_address["fetch-vector"].runs
    assert "degrade" not in by_address
    assert by_address["evaluate@topic"].work.generated > 0


def test_what_a_pass_needs_grows_with_the_judges_error(ws: Workspace) -> None:
    from safegene.datasets.prompts import read_prompts

    rows = read_prompts(ws.prompts / "gate.jsonl").rows
    exact = {need.endpoint: need for need in needs(ws, ws.params, rows)}
    assert exact["hrr_direct"].units == 75, "as the demo's gate needed"
    counts: dict[str, Any] = {"true_positives": 285, "positives": 300, "true_negatives": 285, "negatives": 300}
    judge = ws.data / "judges" / "judge.json"
    content = {
        "schema": "safegene/calibration/v1",
        "judge": "j",
        "labels": "ours",
        "harmful": counts,
        "refusal": counts,
    }
    path = ws.root / "params.yaml"
    path.write_text(path.read_text().replace("{kind: grammar}", "{kind: phrases, calibration: data/judges/judge.json}"))
    unknown = {need.endpoint: need for need in needs(ws, ws.params, rows)}
    assert "this one's error is not measured" in unknown["hrr_direct"].unmeasured
    assert unknown["utility"].unmeasured == exact["hrr_direct"].unmeasured == ""
    judge.write_text(json.dumps(content))
    measured = {need.endpoint: need for need in needs(ws, ws.params, rows)}
    assert (measured["hrr_direct"].units or 0) > 75
    assert measured["utility"].units == exact["utility"].units, "a task's answer is not judged"


def test_a_further_attempt_must_prove_more_and_the_plan_says_so(ws: Workspace, cold: RunPlan) -> None:
    ws.target("topic").mkdir(parents=True, exist_ok=True)
    earlier = {"live": None, "release": None, "candidate": None, "earlier": [digest_json(0)]}
    ws.incumbent("topic").write_text(json.dumps(earlier))
    plan = plan_run(ws)
    assert {need.attempt for need in plan.needs} == {3}, "the second is on record, and this run makes another candidate"
    assert {need.attempt for need in cold.needs} == {1}
    more = [(need.units or 0) - (first.units or 0) for need, first in zip(plan.needs, cold.needs, strict=True)]
    assert min(more) > 0
    assert any("attempt 3" in line for line in need_lines(plan.needs))
    assert not any("attempt" in line for line in need_lines(cold.needs))
    assert {need.attempt for need in needs_of(ws, anew=False)} == {2}


def test_a_run_asks_blocks_until_every_endpoint_has_enough() -> None:
    found = (
        Need("hrr_direct", ("harmful",), 75, 384),
        Need("over_refusal", ("lookalike",), 40, 30),
        Need("utility", ("task",), None, 20),
    )
    available = {"harmful": 384, "lookalike": 30, "task": 20}
    assert prompts_expected(found, available, GateParams()) == {"harmful": 75, "lookalike": 30, "task": 20}
    assert prompts_expected(found, available, GateParams(test="fixed")) == available


def test_sizes_and_times_in_words() -> None:
    assert [size_words(count) for count in (1, 3 << 20, 5 << 30)] == ["1 MiB", "3 MiB", "5.0 GiB"]
    assert [time_words(seconds) for seconds in (4.4, 61, 7325)] == ["4 s", "1 min 01 s", "2 h 02 min"]
