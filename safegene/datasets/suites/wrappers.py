"""The same behaviour asked in other ways: inside a jailbreak template, over several turns, in another language.

A template is text with one place for the prompt, one of `PLACES`, exactly once. Which templates a behaviour gets is
decided by digests alone: no random state, and a template that is added moves only the behaviours that it takes over.
A wrapped row has kind ``wrapped``, the id ``<base>--<template>`` and its base row's behaviour.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safegene.datasets.prompts import Prompt
from safegene.datasets.suites.loading import Item, LoadOptions, SkippedRow, clean
from safegene.datasets.suites.tables import csv_records, json_records, json_value, text_of
from safegene.errors import EmptySample, FormatError, ParamsError

PLACES = ("[INSERT PROMPT HERE]", "{goal}", "{prompt}", "{query}", "[PROMPT]", "{}")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z]{2,8})?")


@dataclass(frozen=True)
class Template:
    """A wrapper: what stands before the prompt, and what after."""

    id: str
    before: str
    after: str

    def fill(self, prompt: str) -> str:
        """The prompt inside; what looks like a place in the prompt itself stays as it is."""
        return f"{self.before}{prompt}{self.after}"

    @property
    def length(self) -> int:
        """Characters that the template adds."""
        return len(self.before) + len(self.after)


@dataclass(frozen=True)
class Templates:
    """The templates of one file, and how many were left out for which reason."""

    usable: tuple[Template, ...]
    left_out: Mapping[str, int]


def template(name: str, text: str, where: str) -> Template:
    """A template from its text.

    Raises:
        FormatError: it has no place for the prompt, or several, or wraps nothing around it.
    """
    if problem := _problem(text):
        raise FormatError(f"expected a template with one of {', '.join(PLACES)} once, got {problem}, in {where}")
    place = next(place for place in PLACES if place in text)
    before, _, after = text.partition(place)
    return Template(name, before, after)


def flattened(turns: Sequence[str]) -> str:
    """Several user turns as one prompt: numbered, in order, since a prompt here is one text without a model's turns.

    It measures what a model makes of the whole at once; it is not a dialogue in which the model answers in between.
    """
    return "\n\n".join(f"Turn {number} of {len(turns)}:\n{turn}" for number, turn in enumerate(turns, start=1))


def read_templates(data: bytes, where: str) -> Templates:
    """The templates of a file in one of three shapes, by its first character.

    - ``{``: our own, JSON lines ``{"id": ..., "text": ...}`` or ``{"id": ..., "turns": [...]}``; each must be usable.
    - ``[``: a JSON list of texts (garak); what has not exactly one place is left out and counted.
    - else CSV with ``id,text`` (GPTFuzzer); the same.

    A collection's templates are named by the digest of their text.

    Raises:
        FormatError: the file has another shape, or one of our own templates is unusable or named twice.
        EmptySample: no template is usable.
    """
    first = text_of(data, where).lstrip()[:1]
    found = Templates(_own(data, where), {}) if first == "{" else _collected(_collection(data, where, first), where)
    if not found.usable:
        raise EmptySample(f"expected at least one template with a place for the prompt, got none, in {where}")
    return found


def wrap(
    rows: Sequence[Prompt], templates: Templates, per_behaviour: int, options: LoadOptions
) -> tuple[list[Item], dict[str, int]]:
    """Each harmful row inside ``per_behaviour`` templates, and how many templates were left out for which reason.

    Raises:
        ParamsError: fewer templates are usable than each behaviour should get.
        EmptySample: there is no harmful row.
    """
    asked = [base for base in rows if base.kind == "harmful"]
    if not asked:
        raise EmptySample("expected harmful prompts to wrap, got none")
    room = options.longest - max(len(base.prompt) for base in asked)
    usable = [one for one in templates.usable if one.length <= room]
    left = Counter(templates.left_out)
    left[f"too long for prompts of at most {options.longest} characters"] += len(templates.usable) - len(usable)
    if not 1 <= per_behaviour <= len(usable):
        raise ParamsError(f"expected 1 to {len(usable)} templates per behaviour, got {per_behaviour}")
    made: list[Item] = []
    for base in asked:
        chosen = sorted(usable, key=lambda one: _rank(base.behaviour, one.id))[:per_behaviour]
        made += [_wrapped(base, one.id, one.fill(base.prompt)) for one in chosen]
    return made, {reason: count for reason, count in sorted(left.items()) if count}


def translate(rows: Sequence[Prompt], translated: Sequence[Item], language: str, where: str) -> list[Item]:
    """The harmful rows in another language, joined by id; ``translated`` is the same set read from its other file.

    Raises:
        ParamsError: ``language`` is no language tag.
        FormatError: a row and its translation are of different categories: the files do not belong together.
    """
    if not _LANGUAGE.fullmatch(language):
        raise ParamsError(f"expected a language tag such as zh or pt-BR, got {language!r}")
    bases = {base.id: base for base in rows if base.kind == "harmful"}
    made: list[Item] = []
    for other in translated:
        if isinstance(other, SkippedRow) or other.id not in bases:
            made.append(SkippedRow("no direct row of that id") if isinstance(other, Prompt) else other)
            continue
        base = bases[other.id]
        if other.category != base.category:
            raise FormatError(
                f"expected {other.id} of category {base.category!r}, got {other.category!r}, in {where}",
                remedy="a translation must be of the same version of the set, row by row",
            )
        made.append(_wrapped(base, language, other.prompt))
    return made


def _wrapped(base: Prompt, name: str, text: str) -> Prompt:
    return base.model_copy(update={"id": f"{base.id}--{name}", "kind": "wrapped", "prompt": text})


def _rank(behaviour: str, name: str) -> bytes:
    return hashlib.sha256(f"safegene/wrap\n{behaviour}\n{name}".encode()).digest()


def _problem(text: str) -> str:
    count = sum(text.count(place) for place in PLACES)
    if count != 1:
        return "no place for the prompt" if not count else "several places for the prompt"
    place = next(place for place in PLACES if place in text)
    return "" if text.replace(place, "").strip() else "nothing around the prompt"


def _own(data: bytes, where: str) -> tuple[Template, ...]:
    found: dict[str, Template] = {}
    for at, cells in json_records(data, ("id",), where, optional=("text", "turns")):
        name, text = clean(cells["id"], at), _text(cells, at)
        if not _NAME.fullmatch(name) or name in found:
            raise FormatError(f"expected ids of lower-case letters, digits, '_', '-', each once, got {name!r}, in {at}")
        found[name] = template(name, text, at)
    return tuple(found.values())


def _text(cells: Mapping[str, Any], where: str) -> str:
    if ("text" in cells) == ("turns" in cells):
        raise FormatError(f"expected either text or turns, got {sorted(cells)}, in {where}")
    if "text" in cells:
        return clean(cells["text"], where)
    turns = cells["turns"]
    if not isinstance(turns, list) or len(turns) < 2:
        raise FormatError(f"expected a list of two turns or more, got {str(turns)[:60]!r}, in {where}")
    said = [clean(turn, where) for turn in turns]
    if not all(said):
        raise FormatError(f"expected turns with text, got an empty one, in {where}")
    return flattened(said)


def _collection(data: bytes, where: str, first: str) -> Iterator[str]:
    if first != "[":
        return (clean(cells["text"], at) for at, cells in csv_records(data, ("id", "text"), where))
    return (clean(text, f"{where}, item {at}") for at, text in enumerate(json_value(data, where)))


def _collected(texts: Iterator[str], where: str) -> Templates:
    found: dict[str, Template] = {}
    left = Counter[str]()
    for text in texts:
        name = hashlib.sha256(text.encode()).hexdigest()[:12]
        if name in found:
            left["the same template twice"] += 1
        elif problem := _problem(text):
            left[problem] += 1
        else:
            found[name] = template(name, text, where)
    return Templates(tuple(found.values()), dict(sorted(left.items())))
