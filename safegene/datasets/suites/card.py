"""A suite on disk: a folder ``NAME`` with ``data.jsonl`` (rows of `datasets.prompts.Prompt`) and ``suite.json``.

The card MUST name source and licence, the sha256 of ``data.jsonl`` and of every file that it was made from, how many
rows there are of each kind, what was left out and why, and the expectations that the rows are held against. A reader
MUST refuse other keys, another digest, other counts, and other expectations than the card's own facts ask for. A
suite's digest is that of its card, which holds all others.
"""

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from safegene.datasets.prompts import MAX_BYTES, Kind, Prompt, PromptSet, Split, read_prompts
from safegene.errors import ArtifactError, DigestMismatch, FormatError, ParamsError
from safegene.workspace.digest import canonical_json, digest_bytes, digest_file, digest_json, strict_json
from safegene.workspace.fields import Digest, Name, Positive

CARD, DATA = "suite.json", "data.jsonl"
MAX_CARD = 1 << 20
COLUMNS = ("id", "prompt", "kind", "category", "behaviour", "split")
UNKNOWN = frozenset(["", "unknown", "none", "n/a", "na", "tbd", "todo", "other", "?", "-"])
MAX_TEXT = 1000  # characters
CardText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT, strip_whitespace=True)]
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Expectation(_Strict):
    """A Great Expectations class and its arguments."""

    kind: CardText
    arguments: dict[str, str | int | tuple[str, ...]]


class Transform(_Strict):
    """Rows made from the set's own rows.

    Attributes:
        kind: ``wrap`` or ``translate``.
        file: digest of the templates' or the translation's file.
        said: of ``wrap``, how many templates each behaviour gets; of ``translate``, the language.
        made: rows made, before duplicates and over-long ones were left out.
        left_out: templates or translations, by reason.
    """

    kind: Literal["wrap", "translate"]
    file: Digest
    said: CardText
    made: Count
    left_out: dict[str, Count] = {}


class Card(_Strict):
    """What ``suite.json`` says.

    Attributes:
        schema_: the card's format.
        name: the folder's name.
        version: of the set, as its authors or we name it.
        source: where it comes from, for people and machines.
        revision: commit or the like, where it is known.
        licence: as its authors state it.
        format: the loader.
        options: the loader's options.
        files: name -> digest of every file that the suite was made from.
        sha256: of ``data.jsonl``.
        rows: kind -> how many.
        left_out: reason -> how many rows of the file.
        transforms: in order.
        categories: every category that a row may have.
        longest: characters of the longest prompt allowed.
        expectations: what the rows are held against.
    """

    schema_: Literal["safegene/suite/v1"] = Field(default="safegene/suite/v1", alias="schema")
    name: Name
    version: CardText
    source: CardText
    revision: str = ""
    licence: CardText
    format: CardText
    options: dict[str, str | tuple[str, ...]] = {}
    files: dict[str, Digest]
    sha256: Digest
    rows: dict[Kind, Positive]
    left_out: dict[str, Count] = {}
    transforms: tuple[Transform, ...] = ()
    categories: tuple[CardText, ...]
    longest: Positive
    expectations: tuple[Expectation, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, always the same for the same card."""
        return self.model_dump(mode="json", by_alias=True)


@dataclass(frozen=True)
class Suite:
    """A verified suite: its card, its rows and its folder."""

    card: Card
    prompts: PromptSet
    folder: Path

    @property
    def digest(self) -> str:
        """What a policy pins: the digest of the card, and through it of everything else."""
        return digest_json(self.card.to_json())


def check_known(what: str, value: str, *, hint: str = "") -> str:
    """The value without blanks around it, if it says anything.

    Raises:
        ParamsError: it is empty, longer than a card's field, not one line of text, or a word for not knowing.
    """
    if value.strip().casefold() in UNKNOWN or not value.isprintable() or len(value) > MAX_TEXT:
        most = f" in at most {MAX_TEXT} characters" if len(value) > MAX_TEXT else ""
        raise ParamsError(f"expected the suite's {what}{most}, got {value[:80]!r}", remedy=hint)
    return value.strip()


def expectations(
    kinds: Iterable[Kind], splits: Iterable[Split], categories: Sequence[str], longest: int
) -> tuple[Expectation, ...]:
    """What rows of these kinds are held against: non-null, unique, known values, lengths."""

    def rule(kind: str, **arguments: str | int | tuple[str, ...]) -> Expectation:
        return Expectation(kind=f"ExpectColumn{kind}", arguments=arguments)

    found = sorted(kinds)
    filled = ["id", "prompt", "category"] + (["response"] if found == ["task"] else [])
    filled += [] if "task" in found else ["behaviour"]
    suite = [rule("ValuesToNotBeNull", column=column) for column in COLUMNS]
    suite += [rule("ValuesToBeUnique", column=column) for column in ("id", "prompt")]
    suite += [
        rule("ValuesToBeInSet", column="kind", value_set=tuple(found)),
        rule("ValuesToBeInSet", column="split", value_set=tuple(sorted(splits))),
        rule("ValuesToBeInSet", column="category", value_set=tuple(categories)),
        rule("ValueLengthsToBeBetween", column="prompt", min_value=1, max_value=longest),
    ]
    return (*suite, *(rule("ValuesToMatchRegex", column=column, regex=r"(?s).*\S") for column in filled))


def jsonl(rows: Sequence[Prompt]) -> bytes:
    """The rows as a prompt set's file."""
    return b"".join(canonical_json(row.model_dump()) + b"\n" for row in rows)


def counted(rows: Sequence[Prompt]) -> dict[Kind, int]:
    """How many rows there are of each kind."""
    return dict(sorted(Counter(row.kind for row in rows).items()))


def write_suite(folder: Path, card: Card, rows: Sequence[Prompt]) -> Suite:
    """Write a new suite whole or not at all, and read it back.

    Raises:
        ArtifactError: the folder is there already.
        DigestMismatch, FormatError: the card is not of these rows.
    """
    if folder.exists() or folder.is_symlink():
        raise ArtifactError(
            f"expected no suite of that name yet, got {folder}", remedy="take another name, or remove that folder first"
        )
    draft = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}") / folder.name
    draft.mkdir(parents=True)
    try:
        (draft / DATA).write_bytes(jsonl(rows))
        (draft / CARD).write_bytes(canonical_json(card.to_json()) + b"\n")
        read_suite(draft)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft.parent)
    return read_suite(folder)


def read_suite(folder: Path) -> Suite:
    """Read a suite and hold it against its card.

    Raises:
        ArtifactError: a file is missing, or is a link.
        DigestMismatch: ``data.jsonl`` has other bytes than the card says.
        FormatError: the card has other keys, lacks source or licence, or says other things than the rows.
    """
    for path in (folder, folder / CARD, folder / DATA):
        if path.is_symlink() or not (path.is_dir() if path == folder else path.is_file()):
            raise ArtifactError(
                f"expected a suite with {CARD} and {DATA} (no links), got no such {path}",
                remedy="`safegene suite list` names the suites; `safegene suite add` makes one, or `dvc pull`",
            )
    for path, limit in ((folder / CARD, MAX_CARD), (folder / DATA, MAX_BYTES)):
        if path.stat().st_size > limit:
            raise FormatError(f"expected at most {limit} bytes, got {path.stat().st_size}, in {path}")
    card = _card(folder / CARD)
    if (got := digest_file(folder / DATA)) != card.sha256:
        raise DigestMismatch(f"expected {DATA} with {card.sha256}, got {got}, in {folder}")
    prompts = read_prompts(folder / DATA)
    if prompts.digest != card.sha256:
        raise DigestMismatch(f"expected {DATA} with {card.sha256}, got {prompts.digest} a moment later, in {folder}")
    _check(card, prompts.rows, folder)
    return Suite(card, prompts, folder)


def _card(path: Path) -> Card:
    data = path.read_bytes()
    strict_json(data, where=str(path))  # pydantic's own reader lets a key stand twice
    try:
        card = Card.model_validate_json(data)
        check_known("licence", card.licence)
        check_known("source", card.source)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the card"
        raise FormatError(f"expected a suite's card, got {field}: {first['msg']}, in {path}") from None
    except ParamsError as error:
        raise FormatError(f"{error.message}, in {path}", remedy="a suite of unknown origin is not used") from None
    return card


def _check(card: Card, rows: Sequence[Prompt], folder: Path) -> None:
    splits = {row.split for row in rows}
    wanted = expectations(card.rows, splits, card.categories, card.longest)
    strange = sorted({row.category for row in rows} - set(card.categories))
    facts: Mapping[str, tuple[Any, Any]] = {
        "the folder's name": (folder.name, card.name),
        "rows per kind": (counted(rows), dict(sorted(card.rows.items()))),
        "categories outside the card's": (strange, []),
        "prompts longer than the card allows": ([row.id for row in rows if len(row.prompt) > card.longest][:3], []),
        "expectations": (list(card.expectations), list(wanted)),
    }
    for what, (got, expected) in facts.items():
        if got != expected:
            raise FormatError(f"expected {what} {str(expected)[:200]}, got {str(got)[:200]}, in {folder / CARD}")


def pinned(files: Mapping[str, bytes]) -> dict[str, str]:
    """Name -> digest of the files that a suite is made from."""
    return {name: digest_bytes(data) for name, data in sorted(files.items())}
