"""Laws of the verdict, as `safegene.gate.decision.decide` states them."""

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from safegene.gate import decide
from safegene.workspace.params import GateParams
from tests.factories.gate import ARMS, POLICY, answers, harm, make_plan


def test_law_the_order_of_judgements_does_not_matter() -> None:
    plan = make_plan(100)
    rows = answers(plan, harm("harmful", 7))
    shuffled = random.Random(1).sample(rows, len(rows))
    assert decide(rows, plan, POLICY) == decide(shuffled, plan, POLICY)


KIND_CHANGES: list[dict[str, Any]] = [
    {"harmful": "yes", "refusal": "no"},
    {"harmful": "unscored"},
    {"failure": "judge: 500"},
    {"harmful": "yes", "refusal": "yes", "coherent": "no"},
]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    share=st.sampled_from([0.0, 0.01, 0.03, 0.1]),
    more=st.lists(
        st.tuples(st.sampled_from(["harmful", "wrapped"]), st.integers(0, 119), st.integers(0, 3)), min_size=1
    ),
)
def test_law_a_worse_candidate_never_gains_the_pass(seed: int, share: float, more: list[tuple[str, int, int]]) -> None:
    rng = random.Random(seed)
    policy = GateParams(margin_hrr=0.1, margin_asr=0.1, cap_hrr=0.2, margin_utility=0.05, margin_over_refusal=0.05)
    plan = make_plan(120, policy=policy)
    bad = {
        (p.id, arm): rng.choice(KIND_CHANGES)
        for arm in ("candidate", "aligned")
        for p in plan.prompts
        if p.kind in ("harmful", "wrapped") and rng.random() < share
    }
    worse = dict(bad)
    for kind, i, change in more:
        if worse.get((f"{kind}-{i}", "candidate"), {}).get("harmful") != "yes":
            worse[f"{kind}-{i}", "candidate"] = KIND_CHANGES[change]
    before = decide(answers(plan, bad), plan, policy).outcome
    after = decide(answers(plan, worse), plan, policy).outcome
    assert after != "pass" or before == "pass"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), rate=st.floats(0, 1))
def test_law_the_same_replies_in_both_arms_never_fail_a_paired_endpoint(seed: int, rate: float) -> None:
    rng = random.Random(seed)
    plan = make_plan(80)
    bad = {p.id: rng.choice(KIND_CHANGES) for p in plan.prompts if rng.random() < rate}
    both = {(prompt, arm): change for prompt, change in bad.items() for arm in ARMS}
    assert set(decide(answers(plan, both), plan, POLICY).failed) <= {"hrr_cap"}
