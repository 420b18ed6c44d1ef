"""The order in which prompts are asked, how far a run got, and what is asked next.

The order is a permutation that the policy and the prompts themselves fix, so nobody chooses which come first. A run
asks the first units of every kind, then more of those kinds that an open endpoint needs, until the verdict is clear or
nothing is left. What a run did not reach is not lost; a gap in what it reached is.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from safegene.gate.pairs import JudgementIndex
from safegene.gate.types import Plan, PlannedPrompt, Verdict
from safegene.workspace.digest import digest_json
from safegene.workspace.params import GateParams

ENDPOINT_KINDS: Mapping[str, tuple[str, ...]] = {  # endpoint -> the kinds of prompts that decide it
    "hrr_direct": ("harmful",),
    "asr_wrapped": ("wrapped",),
    "hrr_cap": ("harmful",),
    "over_refusal": ("lookalike",),
    "utility": ("task",),
    "coherence": ("harmful", "wrapped", "lookalike", "generic", "task"),
}


def unit_of(prompt: PlannedPrompt) -> str:
    """What a prompt counts as: its behaviour, or where it has none the digest of its text."""
    return prompt.behaviour or prompt.digest


def policy_order(prompts: Iterable[PlannedPrompt], policy: str) -> tuple[PlannedPrompt, ...]:
    """The prompts in the policy's order: kind by kind, units by digest, those of one unit together."""
    return tuple(sorted(prompts, key=lambda one: (one.kind, digest_json([policy, unit_of(one)]), one.id)))


def out_of_order(plan: Plan, policy: GateParams) -> tuple[str, ...]:
    """The problem of a plan in another order than the policy's; none where all prompts are asked anyway."""
    if policy.test == "fixed" or plan.prompts == policy_order(plan.prompts, plan.policy):
        return ()
    return ("prompts in another order than the policy's",)


def prompts_asked(plan: Plan, policy: GateParams, table: JudgementIndex) -> tuple[PlannedPrompt, ...]:
    """The prompts up to the last unit of each kind that any model answered; all of them for the fixed test."""
    if policy.test == "fixed":
        return plan.prompts
    reached = {prompt for prompt, _ in table}
    found: list[PlannedPrompt] = []
    for _, own in groupby(plan.prompts, key=lambda one: one.kind):
        some = list(own)
        known = {unit_of(one) for one in some if one.id in reached}
        last = max((at for at, one in enumerate(some) if unit_of(one) in known), default=-1)
        found += some[: last + 1]
    return tuple(found)


def next_block(
    plan: Plan, policy: GateParams, done: Sequence[str], verdict: Verdict | None
) -> tuple[PlannedPrompt, ...]:
    """What is asked next; empty when the verdict is clear or nothing is left that could make it so.

    Args:
        plan: every prompt, in the policy's order.
        policy: the test and the size of a block.
        done: ids of the prompts asked so far.
        verdict: on those; None before the first.
    """
    if verdict is not None and (verdict.outcome != "inconclusive" or verdict.problems):
        return ()
    if policy.test == "fixed":
        return () if done else plan.prompts
    still = {e.name for e in verdict.endpoints if e.outcome == "inconclusive"} if verdict else set(ENDPOINT_KINDS)
    kinds, known = {kind for name in still for kind in ENDPOINT_KINDS[name]}, set(done)
    block: list[PlannedPrompt] = []
    for kind, own in groupby(plan.prompts, key=lambda one: one.kind):
        if kind in kinds:
            block += _first_units([one for one in own if one.id not in known], policy.block_prompts)
    return tuple(block)


def _first_units(prompts: Sequence[PlannedPrompt], count: int) -> list[PlannedPrompt]:
    """The prompts of the first whole units, until there are ``count`` or more."""
    found: list[PlannedPrompt] = []
    for _, own in groupby(prompts, key=unit_of):
        if len(found) >= count:
            break
        found += own
    return found
