"""The order in which prompts are asked, how far a run got, and which prompts it asks next.

The order is a permutation that the policy and the prompts fix, so that nobody can choose which prompts come first. A
run asks a block of units of every kind, then further blocks of those kinds that decide an open endpoint, until the
verdict is clear or no prompt is left. Prompts that a run did not reach are not lost; a gap before the last prompt that
it reached is.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter

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
ENDPOINTS = tuple(ENDPOINT_KINDS)


def policy_order(prompts: Iterable[PlannedPrompt], policy: str) -> tuple[PlannedPrompt, ...]:
    """The prompts in the policy's order: by kind, then by the digest of policy and unit, then by id.

    Args:
        prompts: in any order.
        policy: digest of the policy.
    """
    return tuple(sorted(prompts, key=lambda prompt: (prompt.kind, digest_json([policy, prompt.unit]), prompt.id)))


def prompts_asked(plan: Plan, policy: GateParams, index: JudgementIndex) -> tuple[PlannedPrompt, ...]:
    """Of each kind, the prompts up to the last unit that any model answered; all prompts for the fixed test."""
    if policy.test == "fixed":
        return plan.prompts
    answered = {prompt for prompt, _ in index.unique}
    asked: list[PlannedPrompt] = []
    for _, group in groupby(plan.prompts, key=attrgetter("kind")):
        prompts = list(group)
        units = {prompt.unit for prompt in prompts if prompt.id in answered}
        last = max((at for at, prompt in enumerate(prompts) if prompt.unit in units), default=-1)
        asked += prompts[: last + 1]
    return tuple(asked)


def next_block(
    plan: Plan, policy: GateParams, done: Sequence[str], verdict: Verdict | None
) -> tuple[PlannedPrompt, ...]:
    """The prompts to ask next; empty when the verdict is clear, or nothing is left that could make it clear.

    Args:
        plan: every prompt, in the policy's order.
        policy: the test and the size of a block.
        done: ids of the prompts asked so far.
        verdict: on the replies to those; None before the first block.
    """
    if verdict is not None and (verdict.outcome != "inconclusive" or verdict.problems):
        return ()
    if policy.test == "fixed":
        return () if done else plan.prompts
    still_open = {e.name for e in verdict.endpoints if e.outcome == "inconclusive"} if verdict else set(ENDPOINTS)
    kinds, known = {kind for name in still_open for kind in ENDPOINT_KINDS[name]}, set(done)
    block: list[PlannedPrompt] = []
    for kind, group in groupby(plan.prompts, key=attrgetter("kind")):
        if kind in kinds:
            block += _first_units([prompt for prompt in group if prompt.id not in known], policy.block_prompts)
    return tuple(block)


def _first_units(prompts: Sequence[PlannedPrompt], count: int) -> list[PlannedPrompt]:
    """The prompts of the first units, until there are ``count`` prompts or more; no unit is split."""
    first: list[PlannedPrompt] = []
    for _, group in groupby(prompts, key=attrgetter("unit")):
        if len(first) >= count:
            break
        first += group
    return first
