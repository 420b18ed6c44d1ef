"""The pool of mining, ``data/prompts/pool.jsonl``, as `data split` makes it; what it is for: `safegene.repair.mining`.

Part ``validation``, by which a repair is chosen, has behaviours, wordings and wrappers of its own. Part ``fit``, which
is mined, has behaviours of its own too, and asks those of the safety set's split fit in other words. No prompt of the
pool shares a behaviour, a text or too much wording with the gate or with the validation split of the safety set: the
pool gives way, not the gate.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from safegene.datasets.contamination import ngrams, normalised, seen_in_fitting
from safegene.datasets.pool_templates import ASKED, HELD_ASKED, shipped_wrappers
from safegene.datasets.prompts import Prompt, Split
from safegene.datasets.set_rules import RULES
from safegene.datasets.suites.wrappers import Template
from safegene.errors import EmptySample
from safegene.workspace.params import ValidateParams

WRAPPED, WRAPPED_LOOKALIKES = 2, 1  # wrapped prompts of each behaviour in part fit


@dataclass(frozen=True)
class PoolBehaviours:
    """Direct rows, one or more of each behaviour, from which the pool is made.

    Attributes:
        held: of behaviours that no other set has, for part ``validation``.
        mined: of behaviours that no other set has, for part ``fit``.
        fitted: of the behaviours in split ``fit`` of the safety set.
    """

    held: Sequence[Prompt]
    mined: Sequence[Prompt]
    fitted: Sequence[Prompt]


def pool_prompts(behaviours: PoolBehaviours) -> list[Prompt]:
    """The rows of both parts."""
    held, fit = shipped_wrappers("held"), shipped_wrappers("fit")
    rows = [one for row in behaviours.held for one in _asked(row, "validation", enumerate(HELD_ASKED), held)]
    plain, *others = enumerate(ASKED)
    for at, row in enumerate((*behaviours.mined, *behaviours.fitted)):
        forms = [plain] if at < len(behaviours.mined) else []  # the safety set asks the fitted ones plainly
        count = WRAPPED if row.kind == "harmful" else WRAPPED_LOOKALIKES
        # The safety set asks its first behaviour in the first wrapper, and so on: here they begin one later.
        wrapped = [fit[(at + 1 + turn) % len(fit)] for turn in range(count)]
        rows += _asked(row, "fit", [*forms, others[at % len(others)]], wrapped)
    return rows


def apart_from(pool: Sequence[Prompt], tested: Sequence[Prompt], params: ValidateParams) -> tuple[Prompt, ...]:
    """The rows of the pool by which stage ``validate`` finds no tested row, and no held-out one, seen in fitting.

    Args:
        pool: as `pool_prompts` makes it.
        tested: rows of the gate, and of the validation split of the safety set.
        params: section ``validate`` of params.yaml, with the rules of comparison.
    """
    kept = _unlike(pool, tested, params)
    held = [row for row in kept if row.split == "validation"]
    return (*held, *_unlike([row for row in kept if row.split == "fit"], held, params))


def require_pool(pool: Sequence[Prompt], left_out: int, params: ValidateParams) -> None:
    """Refuse a pool that stage ``validate`` would refuse, or of which mining learns nothing.

    Raises:
        EmptySample: a part has too few rows, or no harmful prompt, or no look-alike.
    """
    for part in RULES["pool"].parts:
        rows = [row for row in pool if row.split == part.split]
        if len(rows) < params.min_rows or {"harmful", "lookalike"} - {row.kind for row in rows}:
            raise EmptySample(
                f"expected a pool of at least {params.min_rows} prompts of {part.words}, harmful ones and look-alikes, "
                f"got {len(rows)} ({left_out} left out, in the words of the gate or of the validation split)",
                remedy="add prompts in other words, or write data/prompts/pool.jsonl yourself and add --keep pool",
            )


def _unlike(rows: Sequence[Prompt], tested: Sequence[Prompt], params: ValidateParams) -> list[Prompt]:
    """The rows without those that share text, behaviour or an n-gram with a tested row that they make seen."""
    ngram = params.overlap_ngram
    broken = seen_in_fitting(tested, rows, ngram=ngram, max_overlap=params.max_overlap)
    names = set[str]().union(*broken.values())
    seen = [row for row in tested if row.id in names]
    behaviours = {row.behaviour for row in seen if row.behaviour}
    texts = {normalised(row.prompt) for row in seen}
    grams = set[tuple[str, ...]]().union(*(ngrams(text, ngram) for text in texts))
    return [
        row
        for row, text in ((row, normalised(row.prompt)) for row in rows)
        if row.behaviour not in behaviours and text not in texts and not ngrams(text, ngram) & grams
    ]


def _asked(
    row: Prompt, split: Split, forms: Iterable[tuple[int, str]], wrappers: Iterable[Template]
) -> Iterator[Prompt]:
    """The row's prompt in each form, and inside each wrapper."""
    for at, form in forms:
        changed = {"id": f"pool-{row.id}--form-{at}", "prompt": form.format(p=row.prompt), "split": split}
        yield row.model_copy(update=changed)
    kind = "wrapped" if row.kind == "harmful" else row.kind
    for template in wrappers:
        changed = {"id": f"pool-{row.id}--{template.id}", "prompt": template.fill(row.prompt), "split": split}
        yield row.model_copy(update={**changed, "kind": kind})
