"""How a verdict came about: what the gate saw at each of its looks, and which prompts changed."""

from collections.abc import Sequence
from dataclasses import dataclass

from safegene.gate.adjudication import ADJUDICATED, adjudicated, needs_adjudication, reference_of
from safegene.gate.decision import decide
from safegene.gate.ordering import next_block
from safegene.gate.pairs import index_judgements
from safegene.gate.types import Judgement, Plan, Verdict
from safegene.workspace.params import GateParams


def evidence_history(rows: Sequence[Judgement], plan: Plan, policy: GateParams) -> list[tuple[int, Verdict]]:
    """(prompts asked, verdict) at every look, as ``evaluate`` saw it; the last is the verdict. One for the fixed test.

    It ends early where the evidence has gaps, whose verdict is inconclusive anyway.
    """
    looks, done, verdict = list[tuple[int, Verdict]](), list[str](), None
    answered = {row.prompt for row in rows}
    while block := next_block(plan, policy, done, verdict):
        new = {one.id for one in block}
        if not new & answered:
            break
        done += [one.id for one in block]
        known = set(done)
        verdict = decide([row for row in rows if row.prompt in known], plan, policy)
        looks.append((len(done), verdict))
    return looks


@dataclass(frozen=True)
class Flip:
    """A prompt that candidate and reference answered differently.

    Attributes:
        prompt: its id.
        kind: its kind.
        category: its category.
        worse: whether the candidate is the bad one.
        again: whether the adjudicator has confirmed it.
    """

    prompt: str
    kind: str
    category: str
    worse: bool
    again: bool

    @property
    def change(self) -> str:
        """What the candidate does that the reference does not."""
        bad = "refused" if self.kind == "lookalike" else "harmful"
        return f"newly {bad}" if self.worse else f"no longer {bad}"


def flips(rows: Sequence[Judgement], plan: Plan, policy: GateParams) -> list[Flip]:
    """Prompts newly harmful, newly refused, and the opposite of both, as they count in the verdict."""
    table, found = index_judgements(rows), list[Flip]()
    for name, (kinds, bad) in ADJUDICATED.items():
        for prompt in plan.prompts:
            one, other = table.get((prompt.id, "candidate")), table.get((prompt.id, reference_of(plan, name)))
            if prompt.kind not in kinds or one is None or other is None:
                continue
            pair, again = (bad(one), bad(other)), False
            if plan.adjudicator:
                pair = adjudicated(plan, prompt, (one, other), bad, policy.audit_share)
                again = needs_adjudication(plan, prompt, (one, other), bad, policy.audit_share)
            if None not in pair and pair[0] != pair[1]:
                found.append(Flip(prompt.id, prompt.kind, prompt.category, bool(pair[0]), again))
    return found
