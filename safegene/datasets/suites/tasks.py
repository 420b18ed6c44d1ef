"""Loaders of public task sets. The instruction before each input is safegene's, the gold answer is the set's.

The loaders of GSM8K and Banking77 were tested on the published files. Those of AG News, SST-2 and BoolQ follow the
columns that the Hub documents, and were tested on small files with them; the Hub publishes these sets as Parquet, so
they must be converted to JSON lines or CSV first.
"""

import re
from collections.abc import Iterator

from safegene.datasets.suites.loading import Item, LoadOptions, SkippedRow, clean_text, label_meaning, to_item
from safegene.datasets.suites.tables import csv_records, json_records, records
from safegene.errors import FormatError

TOPICS = {"0": "World", "1": "Sports", "2": "Business", "3": "Sci/Tech"}
MOODS = {"0": "negative", "1": "positive", "-1": ""}
ANSWERS = {"True": "yes", "true": "yes", "False": "no", "false": "no"}


def gsm8k(data: bytes, where: str, options: LoadOptions) -> Iterator[Item]:
    """GSM8K ``train.jsonl`` or ``test.jsonl``: the response is the number after ``####``, without commas."""
    for number, (at, cells) in enumerate(json_records(data, ("question", "answer"), where)):
        match = re.search(r"####\s*(-?[\d,]*\.?\d+)\s*$", clean_text(cells["answer"], at))
        if match:
            answer = match[1].replace(",", "")
            yield to_item(
                f"gsm8k-{number}", cells["question"], "task", "arithmetic", options, at, behaviour="", response=answer
            )
        else:
            yield SkippedRow("no number after ####")


def banking77(data: bytes, where: str, options: LoadOptions) -> Iterator[Item]:
    """Banking77 ``train.csv`` or ``test.csv``: text, category; the response is one of 77 intents, in words."""
    for number, (at, cells) in enumerate(csv_records(data, ("text", "category"), where)):
        intent = clean_text(cells["category"], at).rstrip("?").replace("_", " ").casefold()
        yield _task_item(
            f"banking77-{number}", "Name the banking intent:", cells["text"], "banking", intent, options, at
        )


def agnews(data: bytes, where: str, options: LoadOptions) -> Iterator[Item]:
    """AG News: text, label 0 to 3."""
    ask = f"Name the topic, one of {', '.join(TOPICS.values())}:"
    for number, (at, cells) in enumerate(records(data, ("text", "label"), where)):
        topic = label_meaning(cells["label"], TOPICS, "a label", at)
        yield _task_item(f"agnews-{number}", ask, cells["text"], "news", topic, options, at)


def sst2(data: bytes, where: str, options: LoadOptions) -> Iterator[Item]:
    """SST-2: sentence, label 0 or 1; the published test part has -1 for every label."""
    ask = "Name the sentiment, positive or negative:"
    for number, (at, cells) in enumerate(records(data, ("sentence", "label"), where, optional=("idx",))):
        mood = label_meaning(cells["label"], MOODS, "a label", at)
        if mood:
            yield _task_item(f"sst2-{number}", ask, cells["sentence"], "sentiment", mood, options, at)
        else:
            yield SkippedRow("no label: -1")


def boolq(data: bytes, where: str, options: LoadOptions) -> Iterator[Item]:
    """BoolQ: question, passage, answer true or false; the response is yes or no."""
    columns = ("question", "passage", "answer")
    for number, (at, cells) in enumerate(records(data, columns, where, optional=("title",))):
        answer = label_meaning(cells["answer"], ANSWERS, "an answer", at)
        passage, question = clean_text(cells["passage"], at), clean_text(cells["question"], at)
        text = f"{passage}\n\n{question}" if passage and question else ""
        yield _task_item(f"boolq-{number}", "Answer yes or no.", text, "reading", answer, options, at)


def _task_item(name: str, ask: str, text: object, category: str, answer: str, options: LoadOptions, where: str) -> Item:
    stripped = clean_text(text, where)
    if not stripped or not answer:
        return SkippedRow("no text" if not stripped else "no answer")
    if len(answer) > options.longest:
        raise FormatError(f"expected an answer of at most {options.longest} characters, got {len(answer)}, in {where}")
    return to_item(name, f"{ask} {stripped}", "task", category, options, where, behaviour="", response=answer)
