"""Turning the rows of a public set into prompts; rows that are left out are counted with their reason."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from safegene.datasets.contamination import normalised
from safegene.datasets.prompts import Kind, Prompt, Split
from safegene.errors import EmptySample, FormatError

LONGEST, LONGEST_CATEGORY = 8000, 200  # characters


@dataclass(frozen=True)
class LoadOptions:
    """The part of a set that the user wants.

    Attributes:
        split: given to every row.
        languages: columns to read, of a set with a column per language.
        without: categories to leave out.
        longest: characters of the longest prompt that is kept.
    """

    split: Split = "test"
    languages: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    longest: int = LONGEST


@dataclass(frozen=True)
class SkippedRow:
    """A row that is left out, and why."""

    reason: str


@dataclass(frozen=True)
class LoadedRows:
    """Rows in file order, and reason -> number of rows left out."""

    rows: tuple[Prompt, ...]
    left_out: Mapping[str, int]


Item = Prompt | SkippedRow
Loader = Callable[[bytes, str, LoadOptions], Iterator[Item]]
"""A pure function: (bytes of the file, its name for messages, options) -> every row of the file, in order."""


def to_item(
    name: str,
    text: object,
    kind: Kind,
    category: object,
    options: LoadOptions,
    where: str,
    *,
    behaviour: str | None = None,
    response: object = "",
) -> Item:
    """One row of a set as a prompt; a row without text or category is skipped.

    Args:
        name: id of the row.
        text: the prompt.
        kind: of the prompt.
        category: at most 200 characters.
        options: give the split.
        where: file and line, for messages.
        behaviour: id of the base behaviour; the row's id when None.
        response: gold answer of a task row.

    Raises:
        FormatError: a value is not a string, or contains NUL or half a surrogate pair; a category is too long.
    """
    fields = {
        "prompt": clean_text(text, where),
        "category": clean_text(category, where),
        "response": clean_text(response, where),
        "id": clean_text(name, where),
    }
    if len(fields["category"]) > LONGEST_CATEGORY:
        got = len(fields["category"])
        raise FormatError(f"expected a category of at most {LONGEST_CATEGORY} characters, got {got}, in {where}")
    if not fields["prompt"]:
        return SkippedRow("no text")
    if not fields["category"]:
        return SkippedRow("no category")
    return Prompt(kind=kind, split=options.split, behaviour=fields["id"] if behaviour is None else behaviour, **fields)


def clean_text(value: object, where: str) -> str:
    """The text without surrounding blanks.

    Raises:
        FormatError: it is not a string, or contains NUL or half a surrogate pair.
    """
    if not isinstance(value, str):
        raise FormatError(f"expected text, got {type(value).__name__}, in {where}")
    if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        raise FormatError(f"expected text without NUL and half surrogate pairs, got {value[:60]!r}, in {where}")
    return value.strip()


def label_meaning(value: Any, known: Mapping[str, str], what: str, where: str) -> str:
    """The meaning of a label.

    Raises:
        FormatError: the set's documentation does not list that label.
    """
    key = str(value).strip()
    if key not in known:
        raise FormatError(f"expected {what} of {', '.join(known)}, got {key[:60]!r}, in {where}")
    return known[key]


def collect_rows(items: Iterable[Item], options: LoadOptions, where: str) -> LoadedRows:
    """The rows that the options admit, with duplicates of an earlier text left out.

    Raises:
        FormatError: an id occurs twice.
        EmptySample: no row is left.
    """
    rows: dict[str, Prompt] = {}
    texts: set[str] = set()
    left_out = Counter[str]()
    for item in items:
        reason = item.reason if isinstance(item, SkippedRow) else _reason_to_skip(item, options, texts)
        if isinstance(item, Prompt) and item.id in rows:
            raise FormatError(f"expected every id once, got {item.id!r} twice, in {where}")
        if reason:
            left_out[reason] += 1
        elif isinstance(item, Prompt):
            rows[item.id] = item
            texts.add(comparable_text(item))
    if not rows:
        reasons = ", ".join(f"{count} left out: {reason}" for reason, count in sorted(left_out.items())) or "no rows"
        raise EmptySample(f"expected at least one prompt, got none ({reasons}), in {where}")
    return LoadedRows(tuple(rows.values()), dict(sorted(left_out.items())))


def _reason_to_skip(prompt: Prompt, options: LoadOptions, texts: set[str]) -> str:
    if prompt.category in options.without:
        return f"category {prompt.category}"
    if len(prompt.prompt) > options.longest:
        return f"more than {options.longest} characters"
    return "the same text as an earlier row" if comparable_text(prompt) in texts else ""


def comparable_text(prompt: Prompt) -> str:
    """The text by which two rows count as the same: normalised, or unchanged when it has no letter or digit."""
    return normalised(prompt.prompt) or prompt.prompt
