"""From a public set's rows to prompts: what is left out is counted with its reason, never dropped silently."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from safegene.datasets.prompts import Kind, Prompt, Split, normalised
from safegene.errors import EmptySample, FormatError

LONGEST, LONGEST_CATEGORY = 8000, 200  # characters


@dataclass(frozen=True)
class LoadOptions:
    """What a person chooses of a set.

    Attributes:
        split: of every row.
        languages: columns of a set with a column per language.
        without: categories to leave out.
        longest: characters of the longest prompt that is kept.
    """

    split: Split = "test"
    languages: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    longest: int = LONGEST


@dataclass(frozen=True)
class SkippedRow:
    """A row that the suite does not hold, and why."""

    reason: str


@dataclass(frozen=True)
class LoadedRows:
    """Rows in file order, and how many were left out for which reason."""

    rows: tuple[Prompt, ...]
    left_out: Mapping[str, int]


Item = Prompt | SkippedRow
Loader = Callable[[bytes, str, LoadOptions], Iterator[Item]]
"""A pure function: the file's bytes, its name for messages, the options -> every row of the file, in order."""


def row(
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
    """A prompt; its behaviour is its own id unless told. Without text it is left out.

    Raises:
        FormatError: a value is no text, or holds NUL or half a surrogate pair; a category is longer than a name.
    """
    said = {
        "prompt": clean(text, where),
        "category": clean(category, where),
        "response": clean(response, where),
        "id": clean(name, where),
    }
    if len(said["category"]) > LONGEST_CATEGORY:
        got = len(said["category"])
        raise FormatError(f"expected a category of at most {LONGEST_CATEGORY} characters, got {got}, in {where}")
    if not said["prompt"]:
        return SkippedRow("no text")
    if not said["category"]:
        return SkippedRow("no category")
    return Prompt(kind=kind, split=options.split, behaviour=said["id"] if behaviour is None else behaviour, **said)


def clean(value: object, where: str) -> str:
    """The text without blanks around it.

    Raises:
        FormatError: it is no text that a file can hold.
    """
    if not isinstance(value, str):
        raise FormatError(f"expected text, got {type(value).__name__}, in {where}")
    if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        raise FormatError(f"expected text without NUL and half surrogate pairs, got {value[:60]!r}, in {where}")
    return value.strip()


def one_of(value: Any, known: Mapping[str, str], what: str, where: str) -> str:
    """What a label stands for.

    Raises:
        FormatError: nobody documented that label.
    """
    key = str(value).strip()
    if key not in known:
        raise FormatError(f"expected {what} of {', '.join(known)}, got {key[:60]!r}, in {where}")
    return known[key]


def collect_rows(items: Iterable[Item], options: LoadOptions, where: str) -> LoadedRows:
    """Rows with distinct ids and distinct texts, within the options.

    Raises:
        FormatError: an id stands twice.
        EmptySample: nothing is left.
    """
    rows: dict[str, Prompt] = {}
    texts: set[str] = set()
    left = Counter[str]()
    for item in items:
        reason = item.reason if isinstance(item, SkippedRow) else _unwanted(item, options, texts)
        if isinstance(item, Prompt) and item.id in rows:
            raise FormatError(f"expected every id once, got {item.id!r} twice, in {where}")
        if reason:
            left[reason] += 1
        elif isinstance(item, Prompt):
            rows[item.id] = item
            texts.add(wording(item))
    if not rows:
        said = ", ".join(f"{count} left out: {reason}" for reason, count in sorted(left.items())) or "no rows"
        raise EmptySample(f"expected at least one prompt, got none ({said}), in {where}")
    return LoadedRows(tuple(rows.values()), dict(sorted(left.items())))


def _unwanted(prompt: Prompt, options: LoadOptions, texts: set[str]) -> str:
    if prompt.category in options.without:
        return f"category {prompt.category}"
    if len(prompt.prompt) > options.longest:
        return f"more than {options.longest} characters"
    return "the same text as an earlier row" if wording(prompt) in texts else ""


def wording(prompt: Prompt) -> str:
    """The prompt's words, by which two rows are the same; of a prompt of signs only, its text."""
    return normalised(prompt.prompt) or prompt.prompt
