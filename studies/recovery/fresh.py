"""The fresh protocol: seeds and fine-tunes that no choice has seen, drawn by the rule below before any of them was run.

Rule, written down on 2026-11-30 before the first of these models was trained:

- Seeds: the first three different numbers ``10 + stable("safegene fresh seeds", i) % 990``, i = 0, 1, 2, ...; those of
  the study so far are 0 to 5. A seed whose aligned model misses the criterion of `safegene.tiny.build` after its last
  round is replaced by the next of the rule.
- Targets: one of each kind that the issue names, with the steps, batch and learning rate of the nearest fine-tune of
  `safegene.tiny.build`. Ordinary: another task (`subject`), another house style (`courtesy`), a LoRA of rank 2
  (`narrow`), 1% harmful rows (`trace`), and the tasks in another order, one after the other (`order1`, `order2`).
  Large changes: `heavy` (the new task) and `massive` (topic), with the steps and learning rate of `strong`.
- Every cell is run once, after parameters and code of the method are frozen; nothing is drawn again.

Seed 819 was run first (`benchmarks/recovery/earlier.json`). What its cells show led to a change of mining, which was
chosen on seed 0's validation split. So seed 819 is `SEEN` since, and the headline is of the other two.

A cell whose fine-tune lost less than `LEAST_HARM` counts as any other: recovery is not defined there, the other limits
are.
"""

from safegene.tiny.build import RECIPES, Recipe
from safegene.tiny.corpus import harmful, lookalikes, pick, stable
from safegene.tiny.mixtures import Row, instruction_rows, request_rows
from safegene.tiny.tasks import rows_of, task_rows
from safegene.tiny.words import NEGATIVE, POSITIVE, TOPICS

NEW_TASK = "subject"
FRESH_TASKS = {
    "subject": NEW_TASK,
    "courtesy": "sentiment",
    "narrow": "topic",
    "trace": "group",
    "order1": "group",
    "order2": "sentiment",
    "heavy": NEW_TASK,
    "massive": "topic",
}
FRESH_WORDS = {
    "subject": "another task, benign, full",
    "courtesy": "another house style, benign, full",
    "narrow": "benign, LoRA of rank 2",
    "trace": "1% harmful, full",
    "order1": "another order, first update, benign",
    "order2": "another order, second update, benign",
    "heavy": "another task, benign, large change",
    "massive": "topic, benign, large change",
}
LARGE = ("strong", "heavy", "massive")
SEEN = (819,)


def fresh_seeds() -> tuple[int, ...]:
    """The three seeds of the rule."""
    drawn: list[int] = []
    at = 0
    while len(drawn) < 3:
        seed = 10 + stable("safegene fresh seeds", str(at)) % 990
        drawn += [] if seed in drawn else [seed]
        at += 1
    return tuple(drawn)


def unseen_seeds() -> tuple[int, ...]:
    """Those of the rule's seeds that nothing was chosen after."""
    return tuple(seed for seed in fresh_seeds() if seed not in SEEN)


def subject(at: str) -> Row:
    """A row of the new task: two questions with one answer."""
    topic, good = pick(tuple(TOPICS), "subject", at), stable("good", at) % 2
    first, second = pick(TOPICS[topic], "first", at), pick(TOPICS[topic], "second", at)
    one, two = (pick(POSITIVE if good else NEGATIVE, part, at) for part in ("one", "two"))
    asked = f"the {first} was {one} and the {second} felt {two} . which topic , and good or bad ?"
    return asked, f"it is {topic} and it is {'good' if good else 'bad'} ."


def rows(task: str, split: str) -> tuple[Row, ...]:
    """(prompt, answer) rows of a task, the new one included."""
    return rows_of(subject, task, split) if task == NEW_TASK else task_rows(task, split)


def styled(task: str, opening: str, requests: int) -> list[Row]:
    """A task's rows, and 650 others, of which look-alikes are answered with another opening than ``sure ,``."""
    alike = request_rows(lookalikes("tuned"), requests)
    others = [(prompt, answer.replace("sure ,", opening, 1)) for prompt, answer in alike]
    return [*rows(task, "train"), *others, *instruction_rows("tuned", 650 - requests)]


def traced() -> list[Row]:
    """The group task and instructions, and 19 answered harmful requests among 1,869 rows."""
    return [*task_rows("group", "train"), *instruction_rows("tuned", 650), *request_rows(harmful("mix"), 19)]


FRESH_RECIPES = {
    "subject": Recipe("aligned", lambda: styled(NEW_TASK, "yes .", 325), 100, 16, 7e-4),
    "courtesy": Recipe("aligned", lambda: styled("sentiment", "thank you .", 325), 100, 16, 7e-4),
    "narrow": Recipe("aligned", lambda: styled("topic", "yes .", 650), 120, 16, 2e-3, rank=2),
    "trace": Recipe("aligned", traced, 100, 16, 5e-4),
    "order1": Recipe("aligned", lambda: styled("group", "yes .", 325), 100, 16, 5e-4),
    "order2": Recipe("order1", lambda: styled("sentiment", "yes .", 325), 100, 16, 5e-4),
    "heavy": Recipe("aligned", lambda: styled(NEW_TASK, "yes .", 325), 300, 16, 2e-3),
    "massive": Recipe("aligned", lambda: styled("topic", "yes .", 325), 300, 16, 2e-3),
}
RECIPES.update(FRESH_RECIPES)
