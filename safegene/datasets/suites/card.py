"""A suite on disk: a folder ``NAME`` with ``data.jsonl`` (rows of `datasets.prompts.Prompt`) and ``suite.json``.

``suite.json`` is the suite's card. It MUST name the source and the licence, the sha256 of ``data.jsonl`` and of every
file that the suite was made from, the number of rows of each kind, the rows that were left out and why, and the
expectations that the rows are checked against. A reader MUST refuse other keys, another digest, other counts, and
expectations that do not follow from the card's other fields. The digest of a suite is that of its card, which contains
all the others.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from safegene.datasets.expectations import MAX_TEXT, CardText, Expectation
from safegene.datasets.prompts import MAX_BYTES, Kind, Prompt, PromptSet, Split, parse_prompts, prompt_lines
from safegene.errors import ArtifactError, DigestMismatch, FormatError, ParamsError
from safegene.workspace.atomic import draft_folder
from safegene.workspace.digest import canonical_json, digest_bytes, digest_json
from safegene.workspace.fields import Digest, Name, Positive
from safegene.workspace.parsing import Strict, parse_json

CARD, DATA = "suite.json", "data.jsonl"
MAX_CARD = 1 << 20  # bytes
COLUMNS = ("id", "prompt", "kind", "category", "behaviour", "split")
UNKNOWN = frozenset(["", "unknown", "none", "n/a", "na", "tbd", "todo", "other", "?", "-"])
Count = Annotated[int, Field(ge=0)]


class Transform(Strict):
    """Rows derived from the set's rows.

    Attributes:
        kind: ``wrap`` or ``translate``.
        file: digest of the file of templates or of the translation.
        said: the transform's setting: of ``wrap``, the number of templates per behaviour; of ``translate``, the
            language.
        made: number of rows derived, before duplicates and rows that are too long were left out.
        left_out: reason -> number of templates or translations.
    """

    kind: Literal["wrap", "translate"]
    file: Digest
    said: CardText
    made: Count
    left_out: dict[str, Count] = {}


class Card(Strict):
    """Content of ``suite.json``.

    Attributes:
        schema_: the card's format.
        name: the folder's name.
        version: of the set, as its authors or the user name it.
        source: where the set comes from, usually a URL.
        revision: commit or the like, where it is known.
        licence: as the set's authors state it.
        format: name of the suite format that read it.
        options: of the loader.
        files: name -> digest of every file that the suite was made from.
        sha256: of ``data.jsonl``.
        rows: kind -> number of rows.
        left_out: reason -> number of rows of the file.
        transforms: in the order in which they were applied.
        categories: every category that a row may have.
        longest: characters of the longest prompt allowed.
        expectations: what the rows are checked against.
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

    @property
    def digest(self) -> str:
        """Digest of the card's canonical JSON."""
        return digest_json(self.model_dump(mode="json", by_alias=True))

    @property
    def content(self) -> bytes:
        """The bytes of ``suite.json``; equal cards have equal bytes."""
        return canonical_json(self.model_dump(mode="json", by_alias=True)) + b"\n"


@dataclass(frozen=True)
class Suite:
    """A verified suite: its card, its rows and its folder."""

    card: Card
    prompts: PromptSet
    folder: Path

    @property
    def digest(self) -> str:
        """The digest of the card, which contains the digests of the rows and of the source files."""
        return self.card.digest


def check_known(what: str, value: str, *, hint: str = "") -> str:
    """The value without surrounding blanks, if it carries information.

    Raises:
        ParamsError: it is empty, longer than a field of the card may be, not one line of printable text, or a word
            such as "unknown".
    """
    if value.strip().casefold() in UNKNOWN or not value.isprintable() or len(value) > MAX_TEXT:
        limit = f" in at most {MAX_TEXT} characters" if len(value) > MAX_TEXT else ""
        raise ParamsError(f"expected the suite's {what}{limit}, got {value[:80]!r}", remedy=hint)
    return value.strip()


def expectations_for(
    kinds: Iterable[Kind], splits: Iterable[Split], categories: Sequence[str], longest: int
) -> tuple[Expectation, ...]:
    """The expectations for rows of these kinds: no nulls, unique ids and prompts, known values, length limits."""

    def expect(kind: str, **arguments: str | int | tuple[str, ...]) -> Expectation:
        return Expectation(kind=f"ExpectColumn{kind}", arguments=arguments)

    row_kinds = sorted(kinds)
    filled = ["id", "prompt", "category"] + (["response"] if row_kinds == ["task"] else [])
    filled += [] if "task" in row_kinds else ["behaviour"]
    suite = [expect("ValuesToNotBeNull", column=column) for column in COLUMNS]
    suite += [expect("ValuesToBeUnique", column=column) for column in ("id", "prompt")]
    suite += [
        expect("ValuesToBeInSet", column="kind", value_set=tuple(row_kinds)),
        expect("ValuesToBeInSet", column="split", value_set=tuple(sorted(splits))),
        expect("ValuesToBeInSet", column="category", value_set=tuple(categories)),
        expect("ValueLengthsToBeBetween", column="prompt", min_value=1, max_value=longest),
    ]
    return (*suite, *(expect("ValuesToMatchRegex", column=column, regex=r"(?s).*\S") for column in filled))


def count_kinds(rows: Sequence[Prompt]) -> dict[Kind, int]:
    """Kind -> number of rows, sorted by kind."""
    return dict(sorted(Counter(row.kind for row in rows).items()))


def write_suite(folder: Path, card: Card, rows: Sequence[Prompt], *, replace: bool = False) -> Suite:
    """Write a new suite in one step, and read it back.

    Args:
        folder: of the suite.
        card: its card.
        rows: its rows.
        replace: whether it may take the place of a suite that is there.

    Raises:
        ArtifactError: the folder exists, and may not be replaced.
        DigestMismatch, FormatError: the card does not describe these rows; nothing is written.
    """
    if folder.is_symlink() or (folder.exists() and not (replace and (folder / CARD).is_file())):
        raise ArtifactError(
            f"expected no suite of that name yet, got {folder}", remedy="take another name, or remove that folder first"
        )
    with draft_folder(folder) as draft:
        (draft / DATA).write_bytes(prompt_lines(rows))
        (draft / CARD).write_bytes(card.content)
        _read(draft, folder.name)
    return read_suite(folder)


def read_suite(folder: Path) -> Suite:
    """Read a suite and check it against its card.

    Raises:
        ArtifactError: a file is missing, or is a symlink.
        DigestMismatch: ``data.jsonl`` has other bytes than the card states.
        FormatError: the card has other keys, lacks source or licence, or does not describe the rows.
    """
    return _read(folder, folder.name)


def _read(folder: Path, name: str) -> Suite:
    """The suite in ``folder``, whose card must have that name."""
    for path in (folder, folder / CARD, folder / DATA):
        if path.is_symlink() or not (path.is_dir() if path == folder else path.is_file()):
            raise ArtifactError(
                f"expected a suite with {CARD} and {DATA} (no links), got no such {path}",
                remedy="`safegene suite list` lists the suites; `safegene suite add` adds one, or run `dvc pull`",
            )
    for path, limit in ((folder / CARD, MAX_CARD), (folder / DATA, MAX_BYTES)):
        if path.stat().st_size > limit:
            raise FormatError(f"expected at most {limit} bytes, got {path.stat().st_size}, in {path}")
    card = _read_card(folder / CARD)
    data = (folder / DATA).read_bytes()
    if (got := digest_bytes(data)) != card.sha256:
        raise DigestMismatch(f"expected {DATA} with {card.sha256}, got {got}, in {folder}")
    prompts = parse_prompts(data, folder / DATA)
    _check_card(card, prompts.rows, name, folder / CARD)
    return Suite(card, prompts, folder)


def _read_card(path: Path) -> Card:
    card = parse_json(Card, path.read_bytes(), where=str(path))
    try:
        check_known("licence", card.licence)
        check_known("source", card.source)
    except ParamsError as error:
        raise FormatError(f"{error.message}, in {path}", remedy="a suite of unknown origin is not used") from None
    return card


def _check_card(card: Card, rows: Sequence[Prompt], name: str, path: Path) -> None:
    splits = {row.split for row in rows}
    unlisted = sorted({row.category for row in rows} - set(card.categories))
    too_long = [row.id for row in rows if len(row.prompt) > card.longest][:3]
    wanted = expectations_for(card.rows, splits, card.categories, card.longest)
    facts: Mapping[str, tuple[Any, Any]] = {
        "the folder's name": (name, card.name),
        "rows per kind": (count_kinds(rows), dict(sorted(card.rows.items()))),
        "categories outside the card's": (unlisted, []),
        "prompts longer than the card allows": (too_long, []),
        "expectations": (list(card.expectations), list(wanted)),
    }
    for what, (got, expected) in facts.items():
        if got != expected:
            raise FormatError(f"expected {what} {str(expected)[:200]}, got {str(got)[:200]}, in {path}")
