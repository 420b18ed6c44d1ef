"""The three tasks that targets are made for, each a classification with rows for training, fit, validation and test."""

from collections.abc import Callable
from functools import cache

from safegene.tiny.corpus import ordered, pick, stable
from safegene.tiny.words import ASPECTS, DEGREES, GROUPS, NEGATIVE, POSITIVE, REVIEWED, TOPICS

Row = tuple[str, str]
SIZES: dict[str, int] = {"train": 1200, "fit": 200, "validation": 200, "test": 500}


def _sentiment(at: str) -> Row:
    words, label = (POSITIVE, "positive") if stable("label", at) % 2 else (NEGATIVE, "negative")
    noun, aspect, degree = pick(REVIEWED, "noun", at), pick(ASPECTS, "aspect", at), pick(DEGREES, "degree", at)
    one, two = pick(words, "one", at), pick(words, "two", at)
    text = f"review : the {noun} was {degree} {one} and the {aspect} felt {two} . positive or negative ?"
    return text, f"this review is {label} ."


def _topic(at: str) -> Row:
    topic = pick(tuple(TOPICS), "topic", at)
    one, two, three = ordered(TOPICS[topic], at)[:3]
    return f"text : the {one} and the {two} near the {three} . which topic ?", f"the topic is {topic} ."


def _group(at: str) -> Row:
    group = pick(tuple(GROUPS), "group", at)
    one, two, three = ordered(GROUPS[group], at)[:3]
    return f"{one} , {two} and {three} belong to which group ?", f"these are {group} ."


TASKS: dict[str, Callable[[str], Row]] = {"sentiment": _sentiment, "topic": _topic, "group": _group}


@cache
def task_rows(task: str, split: str) -> tuple[Row, ...]:
    """(prompt, gold answer) rows of a task; no prompt stands in two of the splits `SIZES`."""
    rows: dict[str, str] = {}
    at = 0
    while len(rows) < sum(SIZES.values()):
        prompt, answer = TASKS[task](f"{task}/{at}")
        rows.setdefault(prompt, answer)
        at += 1
    start = 0
    for name, size in SIZES.items():
        if name == split:
            return tuple(rows.items())[start : start + size]
        start += size
    raise KeyError(split)
