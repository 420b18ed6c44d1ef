"""Rows that ask the same behaviour in another way: inside a jailbreak template, over several turns, or translated.

A template is text that contains one of `PLACEHOLDERS` exactly once. The templates of a behaviour are chosen by digest,
without random state; adding a template changes only the behaviours that it is chosen for. A derived row has kind
``wrapped``, the id ``<base>--<template>`` or ``<base>--<language>``, and the behaviour of its base row.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from safegene.datasets.prompts import Prompt
from safegene.datasets.suites.loading import Item, LoadOptions, SkippedRow, clean_text
from safegene.datasets.suites.tables import csv_records, decode_text, json_records, json_value
from safegene.errors import EmptySample, FormatError, ParamsError

PLACEHOLDERS = ("[INSERT PROMPT HERE]", "{goal}", "{prompt}", "{query}", "[PROMPT]", "{}")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z]{2,8})?")


@dataclass(frozen=True)
class Template:
    """A jailbreak template: the text before the prompt and the text after it."""

    id: str
    before: str
    after: str

    def fill(self, prompt: str) -> str:
        """The template around the prompt; a placeholder inside the prompt is left unchanged."""
        return f"{self.before}{prompt}{self.after}"

    @property
    def length(self) -> int:
        """Characters that the template adds."""
        return len(self.before) + len(self.after)


@dataclass(frozen=True)
class Templates:
    """The templates of one file, and reason -> number of templates left out."""

    usable: tuple[Template, ...]
    left_out: Mapping[str, int]


def parse_template(name: str, text: str, where: str) -> Template:
    """A template from its text.

    Raises:
        FormatError: it has no placeholder, or several, or no text beside it.
    """
    if problem := _problem(text):
        raise FormatError(f"expected a template with one of {', '.join(PLACEHOLDERS)} once, got {problem}, in {where}")
    placeholder = next(placeholder for placeholder in PLACEHOLDERS if placeholder in text)
    before, _, after = text.partition(placeholder)
    return Template(name, before, after)


def flatten_turns(turns: Sequence[str]) -> str:
    """Several user turns as one prompt, numbered in order.

    A prompt is a single user message, so the model answers all turns at once and not one after the other.
    """
    return "\n\n".join(f"Turn {number} of {len(turns)}:\n{turn}" for number, turn in enumerate(turns, start=1))


def read_templates(data: bytes, where: str) -> Templates:
    """The templates of a file. Its first character tells which of three forms it has.

    - ``{``: safegene's form, JSON lines ``{"id": ..., "text": ...}`` or ``{"id": ..., "turns": [...]}``; every template
      must be usable.
    - ``[``: a JSON list of texts (garak); texts without exactly one placeholder are left out and counted.
    - any other: CSV with the columns ``id,text`` (GPTFuzzer), treated in the same way.

    Templates of the last two forms are named by the digest of their text.

    Raises:
        FormatError: the file has another form, or a template of safegene's form is unusable or named twice.
        EmptySample: no template is usable.
    """
    first = decode_text(data, where).lstrip()[:1]
    templates = (
        Templates(_json_templates(data, where), {}) if first == "{" else _usable(_texts(data, where, first), where)
    )
    if not templates.usable:
        raise EmptySample(f"expected at least one template with a place for the prompt, got none, in {where}")
    return templates


def wrap(
    rows: Sequence[Prompt], templates: Templates, per_behaviour: int, options: LoadOptions
) -> tuple[list[Item], dict[str, int]]:
    """Each harmful row inside ``per_behaviour`` templates, and reason -> number of templates left out.

    Raises:
        ParamsError: ``per_behaviour`` is below 1 or more than the number of usable templates.
        EmptySample: there is no harmful row.
    """
    bases = [base for base in rows if base.kind == "harmful"]
    if not bases:
        raise EmptySample("expected harmful prompts to wrap, got none")
    room = options.longest - max(len(base.prompt) for base in bases)
    usable = [template for template in templates.usable if template.length <= room]
    left_out = Counter(templates.left_out)
    left_out[f"too long for prompts of at most {options.longest} characters"] += len(templates.usable) - len(usable)
    if not 1 <= per_behaviour <= len(usable):
        raise ParamsError(f"expected 1 to {len(usable)} templates per behaviour, got {per_behaviour}")
    wrapped: list[Item] = []
    for base in bases:
        ranked = sorted(usable, key=partial(_rank, base.behaviour))
        wrapped += [_derived(base, template.id, template.fill(base.prompt)) for template in ranked[:per_behaviour]]
    return wrapped, {reason: count for reason, count in sorted(left_out.items()) if count}


def translate(rows: Sequence[Prompt], translated: Sequence[Item], language: str, where: str) -> list[Item]:
    """The harmful rows in another language.

    Args:
        rows: the rows of the set.
        translated: the same set, read from its file in that language; rows are matched by id.
        language: a tag such as ``zh`` or ``pt-BR``.
        where: the file, for messages.

    Raises:
        ParamsError: ``language`` is not a language tag.
        FormatError: a row and its translation have different categories, so the files do not belong together.
    """
    if not _LANGUAGE.fullmatch(language):
        raise ParamsError(f"expected a language tag such as zh or pt-BR, got {language!r}")
    bases = {base.id: base for base in rows if base.kind == "harmful"}
    derived: list[Item] = []
    for other in translated:
        if isinstance(other, SkippedRow) or other.id not in bases:
            derived.append(SkippedRow("no direct row of that id") if isinstance(other, Prompt) else other)
            continue
        base = bases[other.id]
        if other.category != base.category:
            raise FormatError(
                f"expected {other.id} of category {base.category!r}, got {other.category!r}, in {where}",
                remedy="a translation must be of the same version of the set, row by row",
            )
        derived.append(_derived(base, language, other.prompt))
    return derived


def _derived(base: Prompt, name: str, text: str) -> Prompt:
    return base.model_copy(update={"id": f"{base.id}--{name}", "kind": "wrapped", "prompt": text})


def _rank(behaviour: str, template: Template) -> bytes:
    return hashlib.sha256(f"safegene/wrap\n{behaviour}\n{template.id}".encode()).digest()


def _problem(text: str) -> str:
    count = sum(text.count(placeholder) for placeholder in PLACEHOLDERS)
    if count != 1:
        return "no place for the prompt" if not count else "several places for the prompt"
    placeholder = next(placeholder for placeholder in PLACEHOLDERS if placeholder in text)
    return "" if text.replace(placeholder, "").strip() else "nothing around the prompt"


def _json_templates(data: bytes, where: str) -> tuple[Template, ...]:
    templates: dict[str, Template] = {}
    for at, cells in json_records(data, ("id",), where, optional=("text", "turns")):
        name, text = clean_text(cells["id"], at), _text(cells, at)
        if not _NAME.fullmatch(name) or name in templates:
            raise FormatError(f"expected ids of lower-case letters, digits, '_', '-', each once, got {name!r}, in {at}")
        templates[name] = parse_template(name, text, at)
    return tuple(templates.values())


def _text(cells: Mapping[str, Any], where: str) -> str:
    if ("text" in cells) == ("turns" in cells):
        raise FormatError(f"expected either text or turns, got {sorted(cells)}, in {where}")
    if "text" in cells:
        return clean_text(cells["text"], where)
    turns = cells["turns"]
    if not isinstance(turns, list) or len(turns) < 2:
        raise FormatError(f"expected a list of two turns or more, got {str(turns)[:60]!r}, in {where}")
    texts = [clean_text(turn, where) for turn in turns]
    if not all(texts):
        raise FormatError(f"expected turns with text, got an empty one, in {where}")
    return flatten_turns(texts)


def _texts(data: bytes, where: str, first: str) -> Iterator[str]:
    if first != "[":
        return (clean_text(cells["text"], at) for at, cells in csv_records(data, ("id", "text"), where))
    return (clean_text(text, f"{where}, item {at}") for at, text in enumerate(json_value(data, where)))


def _usable(texts: Iterator[str], where: str) -> Templates:
    templates: dict[str, Template] = {}
    left_out = Counter[str]()
    for text in texts:
        name = hashlib.sha256(text.encode()).hexdigest()[:12]
        if name in templates:
            left_out["the same template twice"] += 1
        elif problem := _problem(text):
            left_out[problem] += 1
        else:
            templates[name] = parse_template(name, text, where)
    return Templates(tuple(templates.values()), dict(sorted(left_out.items())))
