"""The three classification tasks of the tiny family's targets, with rows for training, fit, validation and test."""

from collections.abc import Callable
from functools import cache

from safegene.tiny.corpus import ordered, pick, stable
from safegene.tiny.words import ASPECTS, DEGREES, GROUPS, NEGATIVE, POSITIVE, REVIEWED, TOPICS

Row = tuple[str, str]
SIZES: dict[str, int] = {"train": 1200, "fit": 200, "validation": 200, "test": 500}


def _sentiment(at: str) -> Row:
    words, label = (POSITIVE, "positive") if stable("label", at) % 2 else (NEGATIVE, "negative")
    noun, aspect, degree = pick(REVIEWED, "noun", at), pick(ASPECTS, "aspect", at), pick(DEGREES, "degree", at)
    first, second = pick(words, "one", at), pick(words, "two", at)
    text = f"review : the {noun} was {degree} {first} and the {aspect} felt {second} . positive or negative ?"
    return text, f"this review is {label} ."


def _topic(at: str) -> Row:
    topic = pick(tuple(TOPICS), "topic", at)
    first, second, third = ordered(TOPICS[topic], at)[:3]
    return f"text : the {first} and the {second} near the {third} . which topic ?", f"the topic is {topic} ."


def _group(at: str) -> Row:
    group = pick(tuple(GROUPS), "group", at)
    first, second, third = ordered(GROUPS[group], at)[:3]
    return f"{first} , {second} and {third} belong to which group ?", f"these are {group} ."


TASKS: dict[str, Callable[[str], Row]] = {"sentiment": _sentiment, "topic": _topic, "group": _group}


@cache
def task_rows(task: str, split: str) -> tuple[Row, ...]:
    """(prompt, gold answer) rows of a task in a split of `SIZES`; no prompt occurs in two splits.

    Raises:
        KeyError: there is no such task or split.
    """
    return rows_of(TASKS[task], task, split)


def rows_of(row: Callable[[str], Row], task: str, split: str) -> tuple[Row, ...]:
    """The same of a task that is not in `TASKS`: ``row`` gives the row of a name.

    Raises:
        KeyError: there is no such split.
    """
    rows: dict[str, str] = {}
    at = 0
    while len(rows) < sum(SIZES.values()):
        prompt, answer = row(f"{task}/{at}")
        rows.setdefault(prompt, answer)
        at += 1
    start = 0
    for name, size in SIZES.items():
        if name == split:
            return tuple(rows.items())[start : start + size]
        start += size
    raise KeyError(split)
