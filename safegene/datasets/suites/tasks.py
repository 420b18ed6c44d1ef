"""The public task sets, from a file's bytes to rows of kind ``task``: the wording is ours, the gold answer is theirs.

GSM8K and Banking77 were read from real files. AG News, SST-2 and BoolQ have the columns that the Hub documents, tested
on small files of that shape; the Hub keeps them as Parquet, so they are converted to JSON lines or CSV first.
"""

import re
from collections.abc import Iterator

from safegene.datasets.suites.loading import Item, LoadOptions, SkippedRow, clean, one_of, row
from safegene.datasets.suites.tables import csv_records, json_records, records
from safegene.errors import FormatError

TOPICS = {"0": "World", "1": "Sports", "2": "Business", "3": "Sci/Tech"}
MOODS = {"0": "negative", "1": "positive", "-1": ""}
ANSWERS = {"True": "yes", "true": "yes", "False": "no", "false": "no"}


def gsm8k(data: bytes, where: str, options: LoadOptions) -> Iterator[Item]:
    """GSM8K ``train.jsonl`` or ``test.jsonl``: the response is the number after ``####``, without its commas."""
    for number, (at, cells) in enumerate(json_records(data, ("question", "answer"), where)):
        found = re.search(r"####\s*(-?[\d,]*\.?\d+)\s*$", clean(cells["answer"], at))
        if found:
            answer = found[1].replace(",", "")
            yield row(
                f"gsm8k-{number}", cells["question"], "task", "arithmetic", options, at, behaviour="", response=answer
            )
        else:
            yield SkippedRow("no number after ####")


def banking77(data: bytes, where: str, options: LoadOptions) -> Iterator[Item]:
    """Banking77 ``train.csv`` or ``test.csv``: text, category; one of 77 intents, in words."""
    for number, (at, cells) in enumerate(csv_records(data, ("text", "category"), where)):
        intent = clean(cells["category"], at).rstrip("?").replace("_", " ").casefold()
        yield _asked(f"banking77-{number}", "Name the banking intent:", cells["text"], "banking", intent, options, at)


def agnews(data: bytes, where: str, options: LoadOptions) -> Iterator[Item]:
    """AG News: text, label 0 to 3."""
    ask = f"Name the topic, one of {', '.join(TOPICS.values())}:"
    for number, (at, cells) in enumerate(records(data, ("text", "label"), where)):
        topic = one_of(cells["label"], TOPICS, "a label", at)
        yield _asked(f"agnews-{number}", ask, cells["text"], "news", topic, options, at)


def sst2(data: bytes, where: str, options: LoadOptions) -> Iterator[Item]:
    """SST-2: sentence, label 0 or 1; the published test part has -1 for every label."""
    ask = "Name the sentiment, positive or negative:"
    for number, (at, cells) in enumerate(records(data, ("sentence", "label"), where, optional=("idx",))):
        mood = one_of(cells["label"], MOODS, "a label", at)
        if mood:
            yield _asked(f"sst2-{number}", ask, cells["sentence"], "sentiment", mood, options, at)
        else:
            yield SkippedRow("no label: -1")


def boolq(data: bytes, where: str, options: LoadOptions) -> Iterator[Item]:
    """BoolQ: question, passage, answer true or false; the response is yes or no."""
    columns = ("question", "passage", "answer")
    for number, (at, cells) in enumerate(records(data, columns, where, optional=("title",))):
        answer = one_of(cells["answer"], ANSWERS, "an answer", at)
        passage, question = clean(cells["passage"], at), clean(cells["question"], at)
        text = f"{passage}\n\n{question}" if passage and question else ""
        yield _asked(f"boolq-{number}", "Answer yes or no.", text, "reading", answer, options, at)


def _asked(name: str, ask: str, text: object, category: str, answer: str, options: LoadOptions, where: str) -> Item:
    said = clean(text, where)
    if not said or not answer:
        return SkippedRow("no text" if not said else "no answer")
    if len(answer) > options.longest:
        raise FormatError(f"expected an answer of at most {options.longest} characters, got {len(answer)}, in {where}")
    return row(name, f"{ask} {said}", "task", category, options, where, behaviour="", response=answer)
