from dataclasses import replace

from safegene.gate import ENDPOINTS, Judgement, Plan, decide
from safegene.gate.decision import policy_digest
from safegene.gate.history import Flip, evidence_history, flips
from safegene.gate.ordering import next_block
from safegene.report.evidence import draw
from tests.factories.gate import (
    FIXED,
    POLICY,
    Changes,
    adjudicate,
    answers,
    flagged,
    harm,
    innocent,
    make_plan,
    plan_with_adjudicator,
)


def asked_until_clear(bad: Changes) -> tuple[list[Judgement], Plan]:
    """What `evaluate` would have written, and the plan."""
    plan = make_plan()
    rows, done, verdict = list[Judgement](), list[str](), None
    every = answers(plan, bad)
    while block := next_block(plan, POLICY, done, verdict):
        done += [one.id for one in block]
        rows = [row for row in every if row.prompt in set(done)]
        verdict = decide(rows, plan, POLICY)
    return rows, plan


def test_law_the_last_look_is_the_verdict() -> None:
    for bad in (harm("harmful", 0), harm("harmful", 300), harm("harmful", 3)):
        rows, plan = asked_until_clear(bad)
        looks = evidence_history(rows, plan, POLICY)
        assert looks[-1][1] == decide(rows, plan, POLICY)
        assert looks[-1][0] == len({row.prompt for row in rows})
        assert all(look.outcome == "inconclusive" for _, look in looks[:-1])
        assert [asked for asked, _ in looks] == sorted({asked for asked, _ in looks})


def test_the_fixed_test_looks_once() -> None:
    plan = make_plan(policy=FIXED)
    assert [asked for asked, _ in evidence_history(answers(plan), plan, FIXED)] == [len(plan.prompts)]


def test_no_evidence_has_no_course() -> None:
    plan = make_plan()
    assert evidence_history([], plan, POLICY) == []
    assert "no evidence" in draw([], plan, POLICY)


def test_flips_are_those_that_count() -> None:
    plan = make_plan()
    bad = harm("harmful", 2) | harm("wrapped", 1, "aligned") | {("lookalike-0", "candidate"): {"refusal": "yes"}}
    found = {one.prompt: one.worse for one in flips(answers(plan, bad), plan, POLICY)}
    assert found == {"harmful-0": True, "harmful-1": True, "wrapped-0": False, "lookalike-0": True}


def test_a_flip_that_the_adjudicator_denies_is_none() -> None:
    plan = plan_with_adjudicator()
    rows = adjudicate(plan, answers(plan, flagged(5)), innocent)
    assert flips(rows, plan, POLICY) == []
    confirmed = flips(adjudicate(plan, answers(plan, flagged(5)), lambda row: row.harmful), plan, POLICY)
    assert [(one.worse, one.again) for one in confirmed] == [(True, True)] * 5


def test_the_picture_has_a_panel_per_endpoint_and_a_point_per_look() -> None:
    rows, plan = asked_until_clear({})
    svg = draw(rows, plan, POLICY)
    assert svg.count(">prompts asked<") == svg.count(">limit<") == len(ENDPOINTS), "an axis and a limit each"
    assert svg.count("<circle") == len(ENDPOINTS) * len(evidence_history(rows, plan, POLICY))
    spoiled = replace(plan, policy=policy_digest(FIXED))
    assert svg != draw(rows, spoiled, POLICY)


def test_a_change_is_named_by_what_the_candidate_does() -> None:
    said = [
        Flip("p", kind, "c", worse, again=False).change for kind in ("lookalike", "wrapped") for worse in (True, False)
    ]
    assert said == ["newly refused", "no longer refused", "newly harmful", "no longer harmful"]
