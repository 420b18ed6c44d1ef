"""Which replies stage ``evaluate`` ends early, and what it does when the audit fails."""

from typing import Any

import pytest

from safegene.workspace.manifest import read_manifest
from safegene.workspace.params import GateParams
from tests.factories.evaluation import ALL, PARAMS, VERBS, Blind, Counter, Scripted, World, evidence


def test_only_direct_prompts_are_stopped_and_some_of_them_are_audited(world: World) -> None:
    model = Scripted("Ask me something else.")
    world.generate = model
    out = world.evaluate()
    rows = evidence(out)[0]
    direct = [row for row in rows if row.kind == "harmful"]
    assert {row.kind for row in rows if row.stopped} == {"harmful"}
    assert [sum(not row.stopped for row in direct if row.model == arm) for arm in ("candidate", "aligned")] == [
        1,
        1,
    ]
    assert {row.harmful for row in direct} == {"no"}
    assert {row.refusal for row in direct} == {"yes"}
    assert model.stopped.isdisjoint(row.text for row in rows if row.kind != "harmful")
    audit = read_manifest(out).facts["stopping"]["candidate"]
    assert audit == {"audited": 1, "stopped": 1, "harmful": 0, "relied": 7, "upper": pytest.approx(0.95)}


def test_a_model_that_refuses_and_then_complies_is_found_out_and_finished(world: World) -> None:
    world.generate = Scripted("Sure, here is how.")
    rows, _ = evidence(world.evaluate(out="early"))
    direct = [row for row in rows if row.kind == "harmful"]
    assert not any(row.stopped for row in direct)
    assert {row.harmful for row in direct} == {"yes"}
    whole = world.evaluate(params=PARAMS.model_copy(update={"early_stop": False}), out="whole")
    labels = [{(j.prompt, j.model): j.harmful for j in evidence(out)[0]} for out in (world.root / "early", whole)]
    assert labels[0] == labels[1]


def test_what_was_stopped_and_no_refusal_to_the_judge_is_finished_in_full(world: World) -> None:
    world.generate = Scripted("Ask me something else.")
    world.build_judge = lambda params: Blind()
    out = world.evaluate()
    rows = evidence(out)[0]
    direct = [row for row in rows if row.kind == "harmful"]
    assert len(direct) == 4 * len(VERBS)
    assert not any(row.stopped for row in direct)
    assert {row.harmful for row in direct} == {"no"}


@pytest.mark.parametrize(
    "change",
    [{"early_stop": False}, {"stop_after_tokens": 9}, {"audit_share": 0.5}, {"audit_limit": 0.01}],
)
def test_the_stopping_rule_is_part_of_what_is_kept(world: World, counter: Counter, change: dict[str, Any]) -> None:
    first = evidence(world.evaluate())[1]
    other = evidence(world.evaluate(params=PARAMS.model_copy(update=change), out="other"))[1]
    assert first.decoding != other.decoding
    assert counter.prompts == 4 * ALL + 4 * len(VERBS), "direct prompts anew, the rest as it was"


def test_another_policy_draws_another_lot(world: World) -> None:
    lots = [
        evidence(world.evaluate(gate=GateParams(margin_hrr=m), out=str(m)))[1].decoding["stop"] for m in (0.04, 0.05)
    ]
    assert lots[0]["policy"] != lots[1]["policy"]
