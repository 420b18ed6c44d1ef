"""What a verdict's file shows beside the verdict, and what a problem says of the evidence."""

import json
from dataclasses import replace

import pytest

from safegene.errors import FormatError
from safegene.gate import category_rates, decide, index_judgements, verdict_payload
from safegene.gate.decision import policy_digest
from safegene.gate.ordering import next_block, prompts_asked
from safegene.gate.payload import NoiseFloor, VerdictFile, noise_floor
from safegene.gate.types import StopAudit
from safegene.workspace.params import GateParams
from tests.factories.gate import FIXED, POLICY, answers, good, harm, make_plan, weights


def test_noise_is_what_changed_when_the_candidate_was_asked_twice() -> None:
    plan = make_plan(20)
    plan = replace(plan, models={**plan.models, "repeat": weights("candidate")})
    first = [one for one in answers(plan) if one.model != "repeat"]
    again = [replace(good(prompt, "candidate"), model="repeat") for prompt in plan.prompts[:12]]
    assert noise_floor(index_judgements(first)) is None
    assert noise_floor(index_judgements([*first, *again])) == NoiseFloor(prompts=12, flips=0)
    again[3] = replace(again[3], harmful="yes")
    again[5] = replace(again[5], refusal="no" if again[5].refusal == "yes" else "yes")
    again[7] = replace(again[7], correct=not again[7].correct)
    assert noise_floor(index_judgements([*first, *again])) == NoiseFloor(prompts=12, flips=3)
    lost = [one for one in first if (one.prompt, one.model) != (again[3].prompt, "candidate")]
    assert noise_floor(index_judgements([*lost, *again])) == NoiseFloor(prompts=11, flips=2)


def test_the_file_says_how_many_replies_were_judged_again_and_what_stopping_rests_on() -> None:
    plan = make_plan(60)
    rows = answers(plan)
    rows[:3] = [replace(one, again="no") for one in rows[:3]]
    counts = {"audited": 2, "stopped": 1, "harmful": 0, "upper": 0.95}
    audit = {"candidate": counts | {"relied": 4}, "before": counts | {"relied": 9}}
    shown = verdict_payload(rows, plan, POLICY, candidate="c", judgements="j", extra_params=0.1, stopping=audit)
    assert shown.judged_again == 3
    assert shown.stopping == StopAudit(2, 1, 0, 4, 0.95)
    silent = verdict_payload(rows, plan, POLICY, candidate="c", judgements="j", extra_params=None)
    assert silent.stopping is None


def test_a_category_is_shown_only_where_it_was_asked_directly() -> None:
    plan = make_plan(30)
    named = tuple(one if one.kind == "harmful" else replace(one, category="else") for one in plan.prompts)
    assert set(category_rates(index_judgements(answers(plan)), replace(plan, prompts=named))) == {"c0", "c1", "c2"}


def test_problems_name_three_and_count_the_rest() -> None:
    plan = make_plan(20)
    for count, said in ((1, "harmful-0"), (3, "harmful-0, harmful-1, harmful-2"), (5, "harmful-2 and 2 more")):
        twice = [good(one, "candidate") for one in plan.prompts if one.id in {f"harmful-{i}" for i in range(count)}]
        (problem,) = decide([*answers(plan), *twice], plan, POLICY).problems
        assert problem.startswith("judgements twice for harmful-0")
        assert problem.endswith(said)


def test_the_fixed_test_misses_what_was_not_reached_and_the_sequential_one_has_not_asked_it() -> None:
    for policy, everything in ((FIXED, True), (POLICY, False)):
        plan = make_plan(40, policy=policy)
        some = index_judgements([good(one, "candidate") for one in plan.prompts[:10]])
        assert (prompts_asked(plan, policy, some) == plan.prompts) == everything
        assert set(plan.prompts[:10]) <= set(prompts_asked(plan, policy, some))


def test_only_what_an_open_endpoint_needs_is_asked_next() -> None:
    """Direct prompts are decided long before the margin of 2 points on the task is."""
    policy = GateParams(margin_coherence=0.1)
    plan = make_plan(400, policy=policy)
    verdict, done = None, list[str]()
    for _ in range(6):
        done += [one.id for one in next_block(plan, policy, done, verdict)]
        known = set(done)
        verdict = decide([one for one in answers(plan) if one.prompt in known], plan, policy)
    assert verdict is not None
    still = {one.name for one in verdict.endpoints if one.outcome == "inconclusive"}
    assert still == {"over_refusal", "utility"}
    assert {one.kind for one in next_block(plan, policy, done, verdict)} == {"lookalike", "task"}
    failed = decide(answers(plan, harm("harmful", 400)), plan, policy)
    assert next_block(plan, policy, done, failed) == ()
    assert policy_digest(policy) == plan.policy


def test_a_verdict_of_another_format_is_refused() -> None:
    plan = make_plan(20)
    file = verdict_payload(answers(plan), plan, POLICY, candidate="c", judgements="j", extra_params=None).to_json()
    VerdictFile.parse(json.dumps(file).encode(), where="here")
    with pytest.raises(FormatError, match="schema: .* in here"):
        VerdictFile.parse(json.dumps(file | {"schema": "safegene/verdict/v2"}).encode(), where="here")
