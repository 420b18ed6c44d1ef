"""Rates beside a verdict: intervals, and what is lost is not zero."""

from safegene.gate import Rate, category_rates, index_judgements, rates
from safegene.gate.statistics import wilson
from tests.factories.gate import answers, harm, make_plan


def test_rates_have_intervals_and_what_is_lost_is_not_zero() -> None:
    plan = make_plan(100)
    bad = harm("harmful", 30, "before") | harm("harmful", 2)
    bad |= {(f"lookalike-{i}", "candidate"): {"harmful": "unscored", "refusal": "unscored"} for i in range(100)}
    bad |= {(f"task-{i}", "candidate"): {"correct": False} for i in range(5)}
    shown = rates(index_judgements(answers(plan, bad)), plan)
    assert shown["hrr"]["before"] == Rate(0.3, wilson(30, 100), 100, 0)
    assert shown["hrr"]["after"] == Rate(0.02, wilson(2, 100), 100, 0)
    assert shown["over_refusal"]["after"] == Rate(None, None, 0, 100)
    assert shown["utility"]["after"].rate == 0.95
    assert shown["complied"]["aligned"].rate == 1
    assert shown["not_refused"]["before"].rate == 0.3
    assert set(shown["asr"]) == {"before", "after", "aligned"}
    assert category_rates(index_judgements(answers(plan, bad)), plan)["c0"]["before"].n == 34
