"""Plans and judgements for tests of the gate: good replies of every model, but for those that a test makes bad."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from safegene.gate import (
    Arm,
    Calibration,
    ConfusionCounts,
    Judgement,
    JudgementRow,
    Label,
    Plan,
    PlannedPrompt,
    Verdict,
    decide,
    index_judgements,
)
from safegene.gate.adjudication import replies_to_adjudicate
from safegene.gate.decision import policy_digest
from safegene.gate.ordering import policy_order
from safegene.workspace.digest import digest_bytes
from safegene.workspace.params import GateParams

POLICY = GateParams()
FIXED = GateParams(test="fixed")
KINDS = ("harmful", "wrapped", "lookalike", "task")
ARMS: tuple[Arm, ...] = ("before", "candidate", "aligned")
JUDGE = digest_bytes(b"judge")
ADJUDICATOR = digest_bytes(b"second judge")
GOOD_COUNTS, POOR_COUNTS = ConfusionCounts(990, 1000, 990, 1000), ConfusionCounts(900, 1000, 950, 1000)

Bad = dict[str, Any]  # changed fields of a judgement
Changes = Mapping[tuple[str, str], Bad] | Mapping[tuple[str, Arm], Bad]  # (prompt id, arm) -> changed fields


def weights(arm: str) -> str:
    """The digest of an arm's weights."""
    return digest_bytes(arm.encode())


def make_plan(n: int = 300, *, arms: Sequence[str] = ARMS, policy: GateParams = POLICY, **changes: Any) -> Plan:
    """A plan of ``n`` prompts of each kind in three categories, with an exact judge."""
    prompts = (
        PlannedPrompt(
            f"{kind}-{i}", kind, f"c{i % 3}", f"b{i}" if kind in KINDS[:2] else "", digest_bytes(f"{kind}{i}".encode())
        )
        for kind in KINDS
        for i in range(n)
    )
    plan = Plan(
        prompts=policy_order(prompts, policy_digest(policy)),
        models={arm: weights(arm) for arm in arms},
        judge=JUDGE,
        calibration=Calibration(JUDGE, exact=True),
        policy=policy_digest(policy),
        suites={"gate": digest_bytes(b"suite")},
    )
    return replace(plan, **changes)


def _second(counts: ConfusionCounts) -> Calibration:
    return Calibration(ADJUDICATOR, harmful=counts, refusal=counts, labels="people")


def plan_with_adjudicator(
    judge: ConfusionCounts | None = POOR_COUNTS, adjudicator: ConfusionCounts | None = GOOD_COUNTS, n: int = 400
) -> Plan:
    """A plan with two judges of these measured errors; None for a judge without calibration."""
    first = Calibration(JUDGE, harmful=judge, refusal=judge, labels="people") if judge else None
    second = _second(adjudicator) if adjudicator else None
    return make_plan(n, calibration=first, adjudicator=ADJUDICATOR, adjudication=second)


def good(prompt: PlannedPrompt, arm: Arm) -> Judgement:
    """The judgement of a good reply: no harm, a refusal only where harm was asked for, a right answer to a task."""
    refusal: Label = "yes" if prompt.kind in ("harmful", "wrapped") else "no"
    correct = True if prompt.kind == "task" else None
    return Judgement(prompt.id, arm, JUDGE, "no", refusal, correct, "yes", weights=weights(arm))


def good_row(prompt: PlannedPrompt, arm: Arm) -> JudgementRow:
    """`good`, with prompt and reply, as a line of ``judgements.jsonl``."""
    return JudgementRow(**vars(good(prompt, arm)), kind=prompt.kind, text="t", reply="r", tokens=1, finished=True)


def answers(plan: Plan, bad: Changes | None = None) -> list[Judgement]:
    """Good replies of every arm to every prompt, but for ``bad``."""
    arms, changes = tuple[Any, ...](plan.models), dict[Any, Bad](bad or {})
    return [replace(good(p, arm), **changes.get((p.id, arm), {})) for arm in arms for p in plan.prompts]


def harm(kind: str, count: int, arm: str = "candidate") -> dict[tuple[str, str], dict[str, Any]]:
    """Harmful replies of an arm to the first ``count`` prompts of a kind."""
    return {(f"{kind}-{i}", arm): {"harmful": "yes", "refusal": "no"} for i in range(count)}


def flagged(count: int) -> dict[tuple[str, str], dict[str, Any]]:
    """Replies of the candidate that the first judge calls harmful though they refuse."""
    return {(f"harmful-{i}", "candidate"): {"harmful": "yes"} for i in range(count)}


def adjudicate(plan: Plan, rows: Sequence[Judgement], label: Callable[[Judgement], Label | None]) -> list[Judgement]:
    """The rows, with the adjudicator's label where the plan asks for it; None where it stays silent."""
    wanted = set(replies_to_adjudicate(plan, POLICY, index_judgements(rows)))
    labels = [label(row) if (row.prompt, row.model) in wanted else None for row in rows]
    return [
        row if again is None else replace(row, again=again, adjudicator=ADJUDICATOR)
        for row, again in zip(rows, labels, strict=True)
    ]


def innocent(row: Judgement) -> Label:
    """An adjudicator that sees no harm."""
    return "no"


def decide_adjudicated(plan: Plan, bad: Changes, label: Callable[[Judgement], Label | None]) -> Verdict:
    """The verdict on good replies but for ``bad``, adjudicated."""
    return decide(adjudicate(plan, answers(plan, bad), label), plan, POLICY)


def outcome_of(verdict: Verdict, name: str) -> str:
    """The outcome of one endpoint."""
    return next(endpoint.outcome for endpoint in verdict.endpoints if endpoint.name == name)
