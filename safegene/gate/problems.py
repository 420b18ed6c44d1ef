"""What is wrong with the evidence as a whole. Any problem makes every endpoint inconclusive."""

from collections import Counter, defaultdict
from collections.abc import Iterable

from safegene.gate.ordering import policy_order
from safegene.gate.pairs import JudgementIndex
from safegene.gate.types import Judgement, Plan
from safegene.workspace.params import GateParams

NAMED = 3  # prompts or models that one problem names


def evidence_problems(
    index: JudgementIndex, plan: Plan, policy: GateParams, *, digest: str, arms: Iterable[str]
) -> tuple[str, ...]:
    """What is wrong with the evidence, one phrase per problem; empty when nothing is.

    Args:
        index: the judgements.
        plan: what was going to be asked.
        policy: the gate's parameters.
        digest: their digest.
        arms: the models whose replies the verdict compares.
    """
    weights = {row.model for row in index.rows if row.weights != plan.models.get(row.model)}
    suite, in_order = plan.suites.get("gate"), plan.prompts == policy_order(plan.prompts, plan.policy)
    checks = (
        (plan.policy != digest, "a policy that is not the plan's"),
        *_plan_checks(plan, set(arms)),
        *_judgement_checks(index, plan),
        (bool(plan.canaries), f"judges that fail their canaries: {'; '.join(plan.canaries[:3])}"),
        (plan.attempt < 1, f"an attempt numbered {plan.attempt}"),
        (bool(weights), f"judgements of other weights than the plan's for {_names(weights)}"),
        (policy.suite not in (None, suite), f"the gate suite {suite}, where the policy pins {policy.suite}"),
        (policy.test != "fixed" and not in_order, "prompts in another order than the policy's"),
    )
    return tuple(phrase for is_present, phrase in checks if is_present)


def _plan_checks(plan: Plan, arms: set[str]) -> tuple[tuple[bool, str], ...]:
    ids = {prompt.id for prompt in plan.prompts}
    behaviours: dict[str, set[str]] = defaultdict(set)
    for prompt in plan.prompts:
        behaviours[prompt.digest].add(prompt.behaviour)
    absent = arms - set(plan.models)
    return (
        (not ids, "a plan without prompts"),
        (len(ids) != len(plan.prompts), "a prompt id planned twice"),
        (any(len(names) > 1 for names in behaviours.values()), "the same prompt text under several behaviours"),
        (bool(absent), f"no digest of the models {_names(absent)}"),
    )


def _judgement_checks(index: JudgementIndex, plan: Plan) -> tuple[tuple[bool, str], ...]:
    counts = Counter((row.prompt, row.model, row.judge) for row in index.rows)
    twice = {prompt for (prompt, _, _), count in counts.items() if count > 1}
    unplanned = {row.prompt for row in index.rows} - {prompt.id for prompt in plan.prompts}
    return (
        (bool(twice), f"judgements twice for {_names(twice)}"),
        (bool(unplanned), f"judgements of prompts that were not planned: {_names(unplanned)}"),
        (any(row.judge != plan.judge for row in index.rows), "judgements by another judge than the plan's"),
        (
            any(row.adjudicator != _planned_adjudicator(row, plan) for row in index.rows),
            "judgements by another adjudicator than the plan's",
        ),
    )


def _planned_adjudicator(row: Judgement, plan: Plan) -> str:
    """The adjudicator that a row must name: none where it has no second label, else the plan's."""
    return "" if row.again is None else plan.adjudicator or "none"


def _names(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:NAMED]) + (f" and {len(listed) - NAMED} more" if len(listed) > NAMED else "")
