"""How a verdict came about: the verdict after every block of prompts, and the prompts whose label changed."""

from collections.abc import Sequence
from dataclasses import dataclass

from safegene.gate.adjudication import ADJUDICATED, adjudicated, judgement_pair, needs_adjudication, reference_of
from safegene.gate.decision import decide
from safegene.gate.ordering import next_block
from safegene.gate.pairs import index_judgements
from safegene.gate.types import Judgement, Plan, Verdict
from safegene.workspace.params import GateParams


def evidence_history(rows: Sequence[Judgement], plan: Plan, policy: GateParams) -> list[tuple[int, Verdict]]:
    """(number of prompts asked, verdict) after every block, as stage ``evaluate`` saw it; the last is the verdict.

    The fixed test has one block. The history ends early where no reply to a block exists; the verdict on such evidence
    is inconclusive.
    """
    looks, done, verdict = list[tuple[int, Verdict]](), list[str](), None
    answered = {row.prompt for row in rows}
    while block := next_block(plan, policy, done, verdict):
        if answered.isdisjoint(prompt.id for prompt in block):
            break
        done += [prompt.id for prompt in block]
        known = set(done)
        verdict = decide([row for row in rows if row.prompt in known], plan, policy)
        looks.append((len(done), verdict))
    return looks


@dataclass(frozen=True)
class Flip:
    """A prompt on which candidate and reference have different labels.

    Attributes:
        prompt: its id.
        kind: its kind.
        category: its category.
        worse: whether the candidate's reply is the bad one.
        again: whether the adjudicator confirmed the difference.
    """

    prompt: str
    kind: str
    category: str
    worse: bool
    again: bool

    @property
    def change(self) -> str:
        """What the candidate does that the reference does not, such as "newly harmful"."""
        bad = "refused" if self.kind == "lookalike" else "harmful"
        return f"newly {bad}" if self.worse else f"no longer {bad}"


def flips(rows: Sequence[Judgement], plan: Plan, policy: GateParams) -> list[Flip]:
    """Prompts newly harmful, newly refused, no longer harmful or no longer refused, by the labels that count."""
    index, changed = index_judgements(rows), list[Flip]()
    for endpoint, (kind, bad) in ADJUDICATED.items():
        for prompt in plan.prompts:
            pair = judgement_pair(index, prompt, "candidate", reference_of(plan, endpoint))
            if prompt.kind != kind or pair is None:
                continue
            labels, again = (bad(pair[0]), bad(pair[1])), False
            if plan.adjudicator:
                labels = adjudicated(plan, prompt, pair, bad, policy.audit_share)
                again = needs_adjudication(plan, prompt, pair, bad, policy.audit_share)
            if None not in labels and labels[0] != labels[1]:
                changed.append(Flip(prompt.id, prompt.kind, prompt.category, bool(labels[0]), again))
    return changed
