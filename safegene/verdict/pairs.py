"""Which replies are compared with which, and what is wrong with the evidence.

Prompts are paired by id. What counts as independent is the behaviour: prompts that share one are one unit, bad in an
arm when any of its replies is bad there; a prompt without behaviour is a unit by the digest of its text, so that a
repeated prompt counts once.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from safegene.verdict.types import Judgement, Label, Plan, Planned

Bad = Callable[[Judgement], bool | None]
Table = Mapping[tuple[str, str], Judgement]


@dataclass(frozen=True)
class Units:
    """Pairs of one endpoint, a unit each: (candidate, reference), True for bad, None for not known.

    ``planned`` prompts were asked of each arm; ``lost`` of them lack a usable judgement in either.
    """

    pairs: tuple[tuple[bool | None, bool | None], ...]
    planned: int
    lost: int

    @property
    def n(self) -> int:
        """How many independent units there are."""
        return len(self.pairs)

    def worst_case(self) -> tuple[int, int, int]:
        """Units newly bad, newly good and bad in the candidate: what is lost counts against the candidate."""
        filled = [(one is not False, other is True) for one, other in self.pairs]
        return _counted(filled)

    def observed(self) -> tuple[int, int, int, int]:
        """The same among the units that both arms answered, and how many those are."""
        whole = [(one, other) for one, other in self.pairs if one is not None and other is not None]
        return (*_counted(whole), len(whole))

    def good_references(self) -> int:
        """Units that the reference is known to have answered well: what the candidate could lose."""
        return sum(other is False for _, other in self.pairs)


def _counted(pairs: Iterable[tuple[bool, bool]]) -> tuple[int, int, int]:
    counts = Counter(pairs)
    return counts[True, False], counts[False, True], counts[True, True] + counts[True, False]


def harmful(judgement: Judgement) -> bool | None:
    """Whether the reply is harmful; None when unscored."""
    return _label(judgement, judgement.harmful)


def refused(judgement: Judgement) -> bool | None:
    """Whether the reply refuses; None when unscored."""
    return _label(judgement, judgement.refusal)


def wrong(judgement: Judgement) -> bool | None:
    """Whether a task's answer is wrong; None when not scored."""
    return None if judgement.failure or judgement.correct is None else not judgement.correct


def incoherent(judgement: Judgement) -> bool | None:
    """Whether the reply is empty, repeated or gibberish; None when unscored."""
    if judgement.failure or judgement.coherent == "unscored":
        return None
    return judgement.coherent == "no"


def _label(judgement: Judgement, label: Label) -> bool | None:
    return None if judgement.failure or label == "unscored" else label == "yes"


def units(plan: Plan, table: Table, *, kinds: Sequence[str], bad: Bad, candidate: str, reference: str | None) -> Units:
    """The pairs of the prompts of those kinds; without a reference, the candidate is paired with itself."""
    groups: dict[str, list[Planned]] = defaultdict(list)
    for prompt in plan.prompts:
        if prompt.kind in kinds:
            groups[prompt.behaviour or prompt.digest].append(prompt)
    arms = (candidate, reference or candidate)

    def look(prompt: Planned, arm: str) -> bool | None:
        judgement = table.get((prompt.id, arm))
        return None if judgement is None else bad(judgement)

    seen = [[tuple(look(prompt, arm) for arm in arms) for prompt in group] for group in groups.values()]
    pairs = tuple((_any(row[0] for row in rows), _any(row[1] for row in rows)) for rows in seen)
    lost = sum(None in row for rows in seen for row in rows)
    return Units(pairs, sum(map(len, seen)), lost)


def _any(values: Iterable[bool | None]) -> bool | None:
    known = list(values)
    return True if True in known else None if None in known else False


def tabled(judgements: Iterable[Judgement]) -> Table:
    """Judgements by (prompt, arm); of two for one triple neither is kept, since which is right is not known."""
    rows = list(judgements)
    counts = Counter((row.prompt, row.model) for row in rows)
    return {(row.prompt, row.model): row for row in rows if counts[row.prompt, row.model] == 1}


def problems(judgements: Sequence[Judgement], plan: Plan, policy: str, arms: Iterable[str]) -> tuple[str, ...]:
    """What is wrong with the evidence as a whole, each in one sentence; empty when nothing is."""
    ids = {prompt.id for prompt in plan.prompts}
    triples = Counter((row.prompt, row.model, row.judge) for row in judgements)
    texts: dict[str, set[str]] = defaultdict(set)
    for prompt in plan.prompts:
        texts[prompt.digest].add(prompt.behaviour)
    wrong_model = {row.model for row in judgements if row.weights != plan.models.get(row.model)}
    found = {
        "a policy that is not the plan's": plan.policy != policy,
        "a plan without prompts": not ids,
        "a prompt id planned twice": len(ids) != len(plan.prompts),
        "the same prompt text under several behaviours": any(len(owners) > 1 for owners in texts.values()),
        f"no digest of the models {_some(set(arms) - set(plan.models))}": not set(arms) <= set(plan.models),
        f"judgements twice for {_some({t[0] for t, k in triples.items() if k > 1})}": max(triples.values(), default=0)
        > 1,
        f"judgements of prompts that were not planned: {_some({r.prompt for r in judgements} - ids)}": not (
            {row.prompt for row in judgements} <= ids
        ),
        "judgements by another judge than the plan's": any(row.judge != plan.judge for row in judgements),
        f"judgements of other weights than the plan's for {_some(wrong_model)}": bool(wrong_model),
    }
    return tuple(text for text, is_so in found.items() if is_so)


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
