"""Disjoint prompt and task sets from suites: ``safegene data split``.

Rows are divided by behaviour: all prompts that ask for the same thing go to one place, and so do rows of one text. The
places of harmful behaviours are degrade, fit, validation (of ``safety.jsonl``), pool and gate; look-alikes skip
degrade. The behaviours of a category are spread over the places in proportion; which goes where follows from a digest
of the seed and the behaviour, so the same suites and seed give the same bytes, and no clock and no random generator
takes part.

The gate asks a harmful prompt directly and inside wrappers. Wrapped rows of a suite go to the gate with their
behaviour; safety and degrade get the wrappers that ship for them, so no wrapper of the gate was fitted on. Gate prompts
that share too much wording with fitted ones are left out and counted.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from safegene.datasets.contamination import check_contamination, seen_in_fitting
from safegene.datasets.mining_pool import PoolBehaviours, apart_from, pool_prompts
from safegene.datasets.pool_templates import POOL_MAKERS, plain_rows, pool_rows, shipped_wrappers
from safegene.datasets.prompts import Kind, Prompt, Split
from safegene.datasets.set_rules import RULES, Part
from safegene.datasets.suites.loading import comparable_text
from safegene.datasets.suites.wrappers import Template
from safegene.errors import EmptySample, FormatError, ParamsError
from safegene.text import counted
from safegene.workspace.params import ValidateParams

PLACES = ("degrade", "fit", "validation", "pool", "gate")
FEWEST = 4  # behaviours of a place without a rule of its own
LABELS = 20  # a task with at most so many answers is spread by answer
HELD_OUT = 3  # one of so many behaviours of the pool is held out
WRAPPED_LOOKALIKES = 4  # one of so many look-alikes of the safety set is also asked inside a wrapper


@dataclass(frozen=True)
class SplitOptions:
    """How rows are divided.

    Attributes:
        seed: another seed, another division.
        degrade: share of the harmful behaviours that train the surrogates.
        fit: share that goes to split fit of ``safety.jsonl``, or of a task.
        validation: share that goes to split validation.
        wrappers: of the gate's prompts.
        per_behaviour: wrappers for each harmful behaviour of the gate.
        pool: share that only the pool of mining has.
    """

    seed: int = 0
    degrade: float = 0.04
    fit: float = 0.2
    validation: float = 0.04
    wrappers: Sequence[Template] = field(default_factory=lambda: shipped_wrappers("test"))
    per_behaviour: int = 1
    pool: float = 0.08

    def rank(self, *parts: str) -> bytes:
        """A digest by which things are put in order."""
        return hashlib.sha256("\n".join(("safegene/split", str(self.seed), *parts)).encode()).digest()


@dataclass(frozen=True)
class Division:
    """The sets that a split gives.

    Attributes:
        sets: set (``degrade``, ``safety``, ``pool``, ``gate``) -> rows.
        left_out: reason -> number of behaviours left out of the gate.
        pool_left_out: prompts left out of the pool, in the words of the gate or of the validation split.
    """

    sets: Mapping[str, tuple[Prompt, ...]]
    left_out: Mapping[str, int]
    pool_left_out: int = 0


def split_prompts(
    rows: Sequence[Prompt],
    pools: Iterable[str],
    options: SplitOptions,
    params: ValidateParams,
    other_fitted: Sequence[Prompt] = (),
    other_tested: Sequence[Prompt] = (),
) -> Division:
    """Divide the rows of suites into the degrade, safety, pool and gate sets.

    Args:
        rows: of any kind but task.
        pools: of the surrogates, for which training rows are made.
        options: shares, seed and wrappers.
        params: section ``validate`` of params.yaml, whose rules the sets keep.
        other_fitted: rows of sets that are not made here, which the gate may not ask.
        other_tested: rows of a gate and of a validation split that are not made here, which the pool may not ask.

    Raises:
        ParamsError: a pool without templates, or a share that is no share.
        EmptySample: too few behaviours; says how many of which kind are needed.
        FormatError: two rows have one id, or one text and different kinds.
    """
    pools = sorted(set(pools))
    _check(options, pools)
    groups = _behaviours(rows)
    harmful, alike = (
        _places([group for group in groups if group.kind == kind], options, _least(params, options, kind), kind)
        for kind in ("harmful", "lookalike")
    )
    other = _generic([g for g in groups if g.kind == "generic"], options)
    degrade = [row for pool in pools for row in pool_rows(pool, _direct(harmful["degrade"]))]
    safety = [row for split in ("fit", "validation") for row in _safety(split, harmful, alike, other)]
    gate = [row for group in harmful["gate"] for row in _asked(group, options)]
    gate += [_placed(row, "test") for row in _direct(alike["gate"])]
    kept, left_out = _unseen(gate, [*degrade, *safety, *other_fitted], params)
    _require_enough(kept, left_out, params)
    chosen_by = [row for row in safety if row.split == "validation" and row.kind != "generic"]
    asked = _pool(harmful, alike)
    pool = apart_from(asked, [*kept, *chosen_by, *other_tested], params)
    sets = {"degrade": degrade, "safety": safety, "pool": pool, "gate": kept}
    for name, made in sets.items():
        if twice := [row for row, count in Counter(row.id for row in made).items() if count > 1]:
            raise FormatError(f"expected every id once, got {twice[:3]} twice, in the new {name} set")
    return Division({name: tuple(made) for name, made in sets.items()}, left_out, len(asked) - len(pool))


def split_task(rows: Sequence[Prompt], options: SplitOptions, params: ValidateParams) -> tuple[Prompt, ...]:
    """The rows of a task suite in the splits fit, validation and test, the answers spread in proportion.

    Raises:
        EmptySample: too few rows.
    """
    answers = {row.response for row in rows}
    label: Callable[[Prompt], str] = (lambda row: row.response) if len(answers) <= LABELS else (lambda row: "")
    groups = [_Behaviour(row.id, "task", label(row), (row,)) for row in rows]
    least = {"fit": params.min_rows, "validation": FEWEST, "gate": params.min_rows}
    places = _places(groups, options, least, "task")
    splits: tuple[tuple[Split, str], ...] = (("fit", "fit"), ("validation", "validation"), ("test", "gate"))
    return tuple(_placed(row, split) for split, place in splits for group in places[place] for row in group.rows)


@dataclass(frozen=True)
class _Behaviour:
    """Rows that go to one place together."""

    id: str
    kind: Kind
    category: str
    rows: tuple[Prompt, ...]


_Places = Mapping[str, Sequence[_Behaviour]]


def _check(options: SplitOptions, pools: Iterable[str]) -> None:
    shares = (options.degrade, options.fit, options.validation, options.pool)
    if not all(0 <= share < 1 for share in shares) or sum(shares) >= 1:
        raise ParamsError(f"expected shares in 0..1 whose sum leaves room for the gate, got {shares}")
    if not 1 <= options.per_behaviour <= len(options.wrappers):
        raise ParamsError(f"expected 1 to {len(options.wrappers)} wrappers per behaviour, got {options.per_behaviour}")
    if unknown := sorted(set(pools) - set(POOL_MAKERS)):
        raise ParamsError(
            f"expected pools with templates ({', '.join(POOL_MAKERS)}), got {', '.join(unknown)} in degrade.surrogates",
            remedy="write data/prompts/degrade.jsonl yourself and add --keep degrade, or name other pools",
        )


def _behaviours(rows: Sequence[Prompt]) -> list[_Behaviour]:
    """The rows by behaviour; behaviours with a text in common are one."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    texts: dict[str, str] = {}
    for row in rows:
        own = row.behaviour or row.id
        parent[root(own)] = root(texts.setdefault(comparable_text(row), own))
    grouped: dict[str, list[Prompt]] = {}
    for row in rows:
        grouped.setdefault(root(row.behaviour or row.id), []).append(row)
    return [_behaviour(sorted(members, key=lambda row: row.id)) for members in grouped.values()]


def _behaviour(rows: Sequence[Prompt]) -> _Behaviour:
    """One behaviour, its rows under one name and each text once.

    Raises:
        FormatError: two rows of one text have different kinds.
    """
    name = min(row.behaviour or row.id for row in rows)
    kinds = {row.kind for row in rows}
    kind: Kind = "harmful" if kinds & {"harmful", "wrapped"} else "lookalike" if "lookalike" in kinds else "generic"
    once = dict[str, Prompt]()
    for row in rows:
        first = once.setdefault(comparable_text(row), row)
        if first.kind != row.kind:
            raise FormatError(
                f"expected one kind for a text, got {first.kind} in {first.id!r} and {row.kind} in {row.id!r}",
                remedy="decide which it is, and add that set again",
            )
    kept = tuple(row.model_copy(update={"behaviour": name}) for row in once.values())
    return _Behaviour(name, kind, rows[0].category, kept)


def _least(params: ValidateParams, options: SplitOptions, kind: str) -> dict[str, int]:
    """Place -> behaviours of the kind that it needs, from the rules of the sets."""
    degrade = {"degrade": FEWEST} if kind == "harmful" and options.degrade else {}
    return {**degrade, "fit": params.min_rows, "validation": FEWEST, "pool": FEWEST, "gate": params.min_rows}


def _places(groups: Sequence[_Behaviour], options: SplitOptions, least: Mapping[str, int], kind: str) -> _Places:
    """Place -> behaviours: each place of ``least`` gets its share, at least what it needs; the gate gets the rest.

    Raises:
        EmptySample: there are fewer than all places need together.
    """
    shares = dict(zip(PLACES, (options.degrade, options.fit, options.validation, options.pool), strict=False))
    counts = {place: max(least[place], round(shares[place] * len(groups))) for place in PLACES[:-1] if place in least}
    if len(groups) - sum(counts.values()) < least["gate"]:
        counts = {place: least[place] for place in counts}
    if (needed := sum(counts.values()) + least["gate"]) > len(groups):
        parts = ", ".join(f"{count} for {place}" for place, count in {**counts, "gate": least["gate"]}.items())
        what = "rows of the task" if kind == "task" else f"{kind} behaviours"
        raise EmptySample(
            f"expected at least {needed} {what} ({parts}), got {len(groups)}",
            remedy="add more by `safegene data add` or `safegene suite add`, or lower validate.min_rows in params.yaml",
        )
    ordered = _spread(groups, options)
    placed: dict[str, Sequence[_Behaviour]] = {place: () for place in PLACES}
    start = 0
    for place, count in counts.items():
        placed[place] = ordered[start : start + count]
        start += count
    return {**placed, "gate": ordered[start:]}


def _generic(groups: Sequence[_Behaviour], options: SplitOptions) -> _Places:
    """Ordinary instructions: a fifth for validation, the rest for fit; the gate asks none."""
    ordered = _spread(groups, options)
    cut = len(ordered) // 5
    return {"validation": ordered[:cut], "fit": ordered[cut:]}


def _spread(groups: Sequence[_Behaviour], options: SplitOptions) -> list[_Behaviour]:
    """The behaviours in an order in which every section holds each category in proportion."""
    categories: dict[str, list[_Behaviour]] = {}
    for group in groups:
        categories.setdefault(group.category, []).append(group)
    keyed = list[tuple[float, bytes, _Behaviour]]()
    for members in categories.values():
        ranked = sorted(((options.rank(group.id), group) for group in members), key=lambda pair: pair[0])
        keyed += [((at + rank[0] / 256) / len(ranked), rank, group) for at, (rank, group) in enumerate(ranked)]
    return [group for _, _, group in sorted(keyed, key=lambda item: item[:2])]


def _direct(groups: Iterable[_Behaviour]) -> list[Prompt]:
    """The rows that are not wrapped."""
    return [row for group in groups for row in group.rows if row.kind != "wrapped"]


def _placed(row: Prompt, split: Split) -> Prompt:
    return row.model_copy(update={"split": split})


def _wrapped(row: Prompt, template: Template, split: Split, kind: Kind) -> Prompt:
    changed = {"id": f"{row.id}--{template.id}", "prompt": template.fill(row.prompt), "kind": kind, "split": split}
    return row.model_copy(update=changed)


def _safety(split: Split, harmful: _Places, alike: _Places, other: _Places) -> list[Prompt]:
    """The rows of one split of ``safety.jsonl``."""
    wrappers = shipped_wrappers(split)
    asked, safe = _direct(harmful[split]), _direct(alike[split])
    rows = [_placed(row, split) for row in asked]
    rows += [_wrapped(row, wrappers[at % len(wrappers)], split, "wrapped") for at, row in enumerate(asked)]
    rows += [_placed(row, split) for row in safe]
    some = safe[::WRAPPED_LOOKALIKES] if split == "fit" else []
    rows += [_wrapped(row, wrappers[at % len(wrappers)], split, "lookalike") for at, row in enumerate(some)]
    return rows + [_placed(row, split) for row in _direct(other[split])] + plain_rows(split)


def _pool(harmful: _Places, alike: _Places) -> list[Prompt]:
    """The rows of the pool, before it is compared with other sets."""
    held, mined, fitted = list[Prompt](), list[Prompt](), list[Prompt]()
    for places in (harmful, alike):
        own = places["pool"]
        cut = max(FEWEST, len(own) // HELD_OUT)
        held += _direct(own[:cut])
        mined += _direct(own[cut:])
        fitted += _direct(places["fit"])
    return pool_prompts(PoolBehaviours(held, mined, fitted))


def _asked(group: _Behaviour, options: SplitOptions) -> list[Prompt]:
    """The gate's rows of one harmful behaviour: direct, and its own wrapped rows, or the first direct one wrapped."""
    direct = [_placed(row, "test") for row in group.rows if row.kind != "wrapped"]
    wrapped = [_placed(row, "test") for row in group.rows if row.kind == "wrapped"]
    if direct and not wrapped:
        ranked = sorted(options.wrappers, key=lambda template: options.rank(group.id, template.id))
        wrapped = [_wrapped(direct[0], template, "test", "wrapped") for template in ranked[: options.per_behaviour]]
    return direct + wrapped


def _unseen(
    gate: Sequence[Prompt], fitted: Sequence[Prompt], params: ValidateParams
) -> tuple[list[Prompt], dict[str, int]]:
    """The gate's rows without behaviours that were seen in fitting, and reason -> behaviours left out."""
    ngram, overlap = params.overlap_ngram, params.max_overlap
    of = {row.id: row.behaviour or row.id for row in gate}
    seen = {
        f"{reason} as fitted prompts": {of[name] for name in rows}
        for reason, rows in seen_in_fitting(gate, fitted, ngram=ngram, max_overlap=overlap).items()
    }
    gone = set[str]().union(*seen.values())
    kept = [row for row in gate if of[row.id] not in gone]
    check_contamination(kept, fitted, ngram=ngram, max_overlap=overlap, where="the new gate set")
    return kept, {reason: len(behaviours) for reason, behaviours in seen.items()}


def _require_enough(gate: Sequence[Prompt], left_out: Mapping[str, int], params: ValidateParams) -> None:
    for part in RULES["gate"].parts:
        count = _count(gate, part)
        if count < params.min_rows:
            why = "; ".join(f"{counted(number, 'behaviour')} left out: {reason}" for reason, number in left_out.items())
            raise EmptySample(
                f"expected at least {params.min_rows} gate prompts{' of ' + part.words if part.words else ''}, got "
                f"{count}{' (' + why + ')' if why else ''}",
                remedy="add prompts in other words: those of the gate share too much wording with the fitted ones",
            )


def _count(rows: Sequence[Prompt], part: Part) -> int:
    return sum((not part.kinds or row.kind in part.kinds) and part.split in ("", row.split) for row in rows)
