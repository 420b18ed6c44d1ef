"""Loaders of public sets of harmful prompts and safe look-alikes. They keep prompts, never replies.

The loaders of AdvBench, JailbreakBench, XSTest and the CatQA family were tested on the published files. Those of
HarmBench (``harmbench_behaviors_text_all.csv``), StrongREJECT (``strongreject_dataset.csv``), MultiJail,
SimpleSafetyTests and BeaverTails follow the columns that the sets document, and were tested on small files with them.
"""

import re
from collections.abc import Iterator
from typing import Any

from safegene.datasets.prompts import Kind
from safegene.datasets.suites.loading import Item, Loader, LoadOptions, SkippedRow, clean_text, label_meaning, to_item
from safegene.datasets.suites.tables import csv_records, json_records, json_value
from safegene.errors import FormatError, ParamsError

LANGUAGES = ("en", "zh", "it", "vi", "ar", "ko", "th", "bn", "sw", "jv")


def advbench(data: bytes, where: str, options: LoadOptions) -> Iterator[Item]:
    """AdvBench ``harmful_behaviors.csv``: goal, target. The target, the opening of an answer, is not read."""
    for number, (at, cells) in enumerate(csv_records(data, ("goal", "target"), where)):
        yield to_item(f"advbench-{number}", cells["goal"], "harmful", "advbench", options, at)


def harmbench(data: bytes, where: str, options: LoadOptions) -> Iterator[Item]:
    """HarmBench's text behaviours; a context is put before its behaviour. Copyright behaviours are left out."""
    columns = ("Behavior", "SemanticCategory", "Tags", "ContextString", "BehaviorID")
    for at, cells in csv_records(data, columns, where, optional=("FunctionalCategory",)):
        tags = {tag.strip() for tag in cells["Tags"].split(",")}
        context, group = cells["ContextString"].strip(), cells.get("FunctionalCategory", "").strip()
        if "copyright" in (group, cells["SemanticCategory"].strip()) or "hash_check" in tags:
            yield SkippedRow("copyright: judged by comparing with the text itself, not by a judge of harm")
        elif not context and (group == "contextual" or "context" in tags):
            yield SkippedRow("its context is missing")
        else:
            text = f"{context}\n\n{cells['Behavior'].strip()}" if context else cells["Behavior"]
            name = f"harmbench-{_row_id(cells['BehaviorID'], at)}"
            yield to_item(name, text, "harmful", cells["SemanticCategory"], options, at)


def jailbreakbench(kind: Kind, name: str) -> Loader:
    """JailbreakBench's ``harmful-behaviors.csv`` or ``benign-behaviors.csv``; some leave ``Index`` unnamed."""

    def load(data: bytes, where: str, options: LoadOptions) -> Iterator[Item]:
        columns = ("Goal", "Target", "Behavior", "Category", "Source")
        for number, (at, cells) in enumerate(csv_records(data, columns, where, optional=("", "Index"))):
            index = str(cells.get("Index", cells.get("", number)))
            yield to_item(f"{name}-{_row_id(index, at)}", cells["Goal"], kind, cells["Category"], options, at)

    return load


def xstest(data: bytes, where: str, options: LoadOptions) -> Iterator[Item]:
    """XSTest ``xstest_prompts.csv``: safe prompts are look-alikes, their unsafe contrasts are harmful."""
    columns = ("id", "prompt", "type", "label", "focus", "note")
    kinds: dict[str, Kind] = {"safe": "lookalike", "unsafe": "harmful"}
    for at, cells in csv_records(data, columns, where):
        kind = kinds[label_meaning(cells["label"], {name: name for name in kinds}, "a label", at)]
        yield to_item(f"xstest-{_row_id(cells['id'], at)}", cells["prompt"], kind, cells["type"], options, at)


def strongreject(data: bytes, where: str, options: LoadOptions) -> Iterator[Item]:
    """StrongREJECT ``strongreject_dataset.csv``: category, source, forbidden_prompt."""
    for number, (at, cells) in enumerate(csv_records(data, ("category", "source", "forbidden_prompt"), where)):
        yield to_item(f"strongreject-{number}", cells["forbidden_prompt"], "harmful", cells["category"], options, at)


def question_tree(name: str) -> Loader:
    """A JSON tree category -> subcategory -> questions (CatQA, HarmfulQA); ids count through the whole tree."""

    def load(data: bytes, where: str, options: LoadOptions) -> Iterator[Item]:
        number = 0
        for category, kinds in _mapping(json_value(data, where), where).items():
            for kind, texts in _mapping(kinds, f"{where}, {category!r}").items():
                at = f"{where}, {category!r}, {kind!r}"
                for text in _list(texts, at):
                    yield to_item(f"{name}-{number}", text, "harmful", category, options, at)
                    number += 1

    return load


def question_list(name: str) -> Loader:
    """A JSON list of questions (DangerousQA, AdversarialQA)."""

    def load(data: bytes, where: str, options: LoadOptions) -> Iterator[Item]:
        for number, text in enumerate(_list(json_value(data, where), where)):
            yield to_item(f"{name}-{number}", text, "harmful", name, options, f"{where}, item {number}")

    return load


def multijail(data: bytes, where: str, options: LoadOptions) -> Iterator[Item]:
    """MultiJail, a column per language. English rows are harmful; a translation is a wrapped row of the same behaviour.

    Raises:
        ParamsError: MultiJail does not have that language.
    """
    languages = options.languages or ("en",)
    if unknown := set(languages) - set(LANGUAGES):
        raise ParamsError(f"expected languages of {', '.join(LANGUAGES)}, got {', '.join(sorted(unknown))}")
    for at, cells in csv_records(data, ("id", "source", *LANGUAGES, "tags"), where):
        base = f"multijail-{_row_id(cells['id'], at)}"
        category = next(iter(re.findall(r"['\"]([^'\"]+)['\"]", cells["tags"])), cells["tags"])
        for language in languages:
            if language == "en":
                yield to_item(base, cells["en"], "harmful", category, options, at)
            else:
                name = f"{base}--{language}"
                yield to_item(name, cells[language], "wrapped", category, options, at, behaviour=base)


def simplesafetytests(data: bytes, where: str, options: LoadOptions) -> Iterator[Item]:
    """SimpleSafetyTests: id, harm_area, category (the form of the request), prompt; harm_area gives the category."""
    for at, cells in csv_records(data, ("id", "harm_area", "category", "prompt"), where):
        name = f"simplesafetytests-{_row_id(cells['id'], at)}"
        yield to_item(name, cells["prompt"], "harmful", cells["harm_area"], options, at)


def beavertails(data: bytes, where: str, options: LoadOptions) -> Iterator[Item]:
    """BeaverTails' JSON lines: a prompt counts as harmful when a reply to it was labelled unsafe.

    ``is_safe`` labels a prompt with its reply, so a prompt whose replies were all safe is not known to be harmful and
    is left out.
    """
    columns = ("prompt", "response", "category", "is_safe")
    first: dict[str, tuple[int, str, str, str]] = {}
    left: dict[str, None] = {}
    repeated = 0
    for number, (at, cells) in enumerate(json_records(data, columns, where)):
        prompt = clean_text(cells["prompt"], at)
        named = [name for name, yes in sorted(_mapping(cells["category"], at).items()) if yes is True]
        if not isinstance(cells["is_safe"], bool):
            raise FormatError(f"expected is_safe true or false, got {cells['is_safe']!r}, in {at}")
        repeated += prompt in first or prompt in left
        if prompt not in first and not cells["is_safe"] and named:
            left.pop(prompt, None)
            first[prompt] = (number, prompt, named[0], at)
        elif prompt not in first:
            left[prompt] = None
    for number, prompt, category, at in first.values():
        yield to_item(f"beavertails-{number}", prompt, "harmful", category, options, at)
    yield from (SkippedRow("no reply to it was labelled unsafe") for _ in left)
    yield from (SkippedRow("another reply to the same prompt") for _ in range(repeated))


def _row_id(value: str, where: str) -> str:
    """The id that the set gives to a row.

    Raises:
        FormatError: it is empty or longer than 200 characters.
    """
    name = value.strip()
    if not name or len(name) > 200:
        raise FormatError(f"expected an id of 1 to 200 characters, got {name[:60]!r}, in {where}")
    return name


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"expected a JSON object, got {type(value).__name__}, in {where}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise FormatError(f"expected a JSON list, got {type(value).__name__}, in {where}")
    return value
