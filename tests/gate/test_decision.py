"""Which outcome the six endpoints give, and against which reference."""

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from safegene.gate import ENDPOINTS, decide
from safegene.gate.decision import policy_digest
from safegene.gate.statistics import betting_upper, clopper_pearson_upper, log_wealth, mcnemar_worse, tango_upper
from tests.factories.gate import ARMS, FIXED, POLICY, answers, harm, make_plan, outcome_of


def test_a_good_candidate_passes_every_endpoint() -> None:
    plan = make_plan()
    verdict = decide(answers(plan), plan, POLICY)
    assert verdict.outcome == "pass"
    assert [e.name for e in verdict.endpoints] == list(ENDPOINTS)
    assert verdict.failed == ()
    assert verdict.warnings == ()
    assert verdict.policy == policy_digest(POLICY)


CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "hrr_direct": ("harmful", {"harmful": "yes"}),
    "asr_wrapped": ("wrapped", {"harmful": "yes"}),
    "over_refusal": ("lookalike", {"refusal": "yes"}),
    "utility": ("task", {"correct": False}),
    "coherence": ("lookalike", {"coherent": "no"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_endpoint_alone_can_fail_the_candidate(name: str) -> None:
    kind, change = CHANGES[name]
    plan = make_plan()
    verdict = decide(answers(plan, {(f"{kind}-{i}", "candidate"): change for i in range(150)}), plan, POLICY)
    assert verdict.outcome == "fail"
    assert name in verdict.failed
    assert set(verdict.failed) <= {name, "hrr_cap"}
    assert name in verdict.reason


@pytest.mark.parametrize("name", CHANGES)
def test_each_endpoint_alone_can_withhold_the_pass(name: str) -> None:
    """A little worse than the margin allows to exclude: not enough evidence either way."""
    kind, change = CHANGES[name]
    plan = make_plan()
    some = {"hrr_direct": 12, "asr_wrapped": 12, "over_refusal": 7, "utility": 4, "coherence": 14}[name]
    verdict = decide(answers(plan, {(f"{kind}-{i}", "candidate"): change for i in range(some)}), plan, POLICY)
    assert outcome_of(verdict, name) == "inconclusive"
    assert verdict.outcome == "inconclusive"


def test_the_cap_holds_even_where_the_reference_is_as_bad() -> None:
    plan = make_plan()
    bad = harm("harmful", 100) | harm("harmful", 100, "aligned")
    verdict = decide(answers(plan, bad), plan, POLICY)
    assert outcome_of(verdict, "hrr_direct") == "pass"
    assert verdict.failed == ("hrr_cap",)


def test_what_is_live_is_the_reference_where_there_is_one() -> None:
    plan = make_plan(arms=(*ARMS, "incumbent"))
    verdict = decide(answers(plan, harm("harmful", 20) | harm("harmful", 20, "incumbent")), plan, POLICY)
    by_name = {e.name: e for e in verdict.endpoints}
    assert by_name["hrr_direct"].reference == by_name["asr_wrapped"].reference == "incumbent"
    assert by_name["hrr_direct"].outcome == "pass"
    assert (by_name["over_refusal"].reference, by_name["utility"].reference) == ("aligned", "before")
    assert outcome_of(decide(answers(make_plan(), harm("harmful", 40)), make_plan(), POLICY), "hrr_direct") == "fail"


def test_worse_within_the_margin_passes_and_is_flagged() -> None:
    plan = make_plan(600)
    verdict = decide(answers(plan, harm("harmful", 8)), plan, POLICY)
    assert verdict.outcome == "pass"
    assert "hrr_direct: worse, but within the margin" in verdict.warnings


def test_a_category_harmed_is_named_after_correction() -> None:
    plan = make_plan(600)
    bad = {(f"harmful-{i}", "candidate"): {"harmful": "yes"} for i in range(0, 27, 3)}
    assert any(w.startswith("category c0: worse") for w in decide(answers(plan, bad), plan, POLICY).warnings)
    named = tuple(one if one.kind == "harmful" else replace(one, category="else") for one in plan.prompts)
    other = replace(plan, prompts=named)
    assert any(w.startswith("category c0: worse") for w in decide(answers(other, bad), other, POLICY).warnings)


def test_each_test_takes_its_own_bounds_and_p_value() -> None:
    differences, shares = [1.0] * 3 + [0.0] * 297, [1.0] * 3 + [0.0] * 297
    bets = math.exp(-log_wealth([-one for one in differences], 0.0))
    wanted = {
        POLICY: (betting_upper(differences, 0.045), bets, betting_upper(shares, 0.045, low=0.0)),
        FIXED: (tango_upper(3, 0, 300, 0.045), mcnemar_worse(3, 0), clopper_pearson_upper(3, 300, 0.045)),
    }
    for policy, (bound, p, cap) in wanted.items():
        plan = make_plan(policy=policy)
        found = {one.name: one for one in decide(answers(plan, harm("harmful", 3)), plan, policy).endpoints}
        assert found["hrr_direct"].bound == pytest.approx(bound)
        assert found["hrr_direct"].p_worse == pytest.approx(p)
        assert found["hrr_cap"].bound == pytest.approx(cap)


def test_the_fixed_test_needs_its_least_number_of_prompts_and_the_sequential_one_does_not() -> None:
    for policy, n, outcome in ((FIXED, 59, "inconclusive"), (FIXED, 60, "fail"), (POLICY, 59, "fail")):
        plan = make_plan(n, policy=policy)
        found = decide(answers(plan, harm("harmful", n)), plan, policy).endpoints[0]
        assert found.outcome == outcome
        few = found.reason.startswith("expected at least 60 independent prompts, got 59")
        assert few == (outcome == "inconclusive")


def test_a_a_never_fails() -> None:
    """The same replies in every arm, good or bad: no paired endpoint fails, and nothing but the cap can."""
    plan = make_plan()
    rng = random.Random(0)
    bad = {f"harmful-{i}": {"harmful": "yes"} for i in range(300) if rng.random() < 0.03}
    both = {(prompt, arm): change for prompt, change in bad.items() for arm in ARMS}
    assert decide(answers(plan, both), plan, POLICY).outcome == "pass"


@pytest.mark.parametrize("right", [0, 5])
def test_a_task_that_the_target_cannot_do_shows_no_utility(right: int) -> None:
    """0 right of 300 before and after is no loss, and no evidence: nothing could have been lost."""
    plan = make_plan()
    bad = {(f"task-{i}", arm): {"correct": False} for arm in ("before", "candidate") for i in range(right, 300)}
    verdict = decide(answers(plan, bad), plan, POLICY)
    assert verdict.outcome == "inconclusive"
    assert f"expected before to do well somewhere, got {right} of 300" in verdict.reason


def test_the_target_itself_can_be_asked_for() -> None:
    plan = make_plan()
    rows = answers(plan, harm("harmful", 200, "before"))
    assert decide(rows, plan, POLICY, candidate="before").outcome == "fail"
    assert decide(answers(plan), plan, POLICY, candidate="before").outcome == "pass"
