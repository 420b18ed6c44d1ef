"""A set in the user's own format as a suite: ``safegene data add``.

A column map says which column holds which field of a row. What it does not name is filled in: the id from the content,
the behaviour from the id, the category from the suite's name. Replies to prompts that are not of a task are never kept.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from safegene.checkpoints.sources.files import read_file
from safegene.datasets.prompts import Kind, Prompt, prompt_lines
from safegene.datasets.suite_library import suite_folder
from safegene.datasets.suites import Card, LoadOptions, Suite, collect_rows, write_suite
from safegene.datasets.suites.card import check_known, count_kinds, expectations_for
from safegene.datasets.suites.loading import Item, SkippedRow, comparable_text, to_item
from safegene.datasets.suites.tables import Record, decompress, parquet_records, records
from safegene.errors import FormatError, ParamsError
from safegene.text import quoted
from safegene.workspace.digest import digest_bytes
from safegene.workspace.layout import Workspace

FORMAT = "own"
FIELDS = ("id", "prompt", "kind", "category", "behaviour", "response")
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class ColumnMap:
    """Where the fields of a row come from.

    Attributes:
        columns: field -> column; a field that is not named is read from the column of its own name, if there is one.
        kind: of every row, or "" for the column of the kind.
        kinds: value of that column -> kind; the names of the kinds stand for themselves.
        category: of every row without a column for it.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    kind: Kind | str = ""
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    category: str = ""


@dataclass(frozen=True)
class OwnSet:
    """The suite that `add_own` should make.

    Attributes:
        source: file, folder or URI, see `safegene.checkpoints.sources.files`.
        columns: the column map.
        name: of the suite; "" for the file's name.
        licence: of the set.
        origin: where it comes from.
        replace: whether it may take the place of a suite of that name.
    """

    source: str
    columns: ColumnMap = ColumnMap()
    name: str = ""
    licence: str = "own data, not published"
    origin: str = ""
    replace: bool = False


def parse_columns(maps: Sequence[str], kinds: Sequence[str], category: str) -> ColumnMap:
    """A column map from texts: ``FIELD=COLUMN``, and for kinds ``KIND`` (of every row) or ``VALUE=KIND``.

    Raises:
        ParamsError: a text has another form, or a field or kind is unknown or named twice.
    """
    columns, values = dict[str, str](), dict[str, Kind]()
    for text in maps:
        name, _, column = text.partition("=")
        if name not in FIELDS or not column or name in columns:
            raise ParamsError(f"expected --map FIELD=COLUMN, FIELD once and of {', '.join(FIELDS)}, got {quoted(text)}")
        columns[name] = column
    every = [text for text in kinds if "=" not in text]
    for text in kinds:
        value, _, kind = text.rpartition("=")
        if kind not in KINDS or value in values or (every and len(kinds) > 1):
            raise ParamsError(
                f"expected --kind KIND for every row, or --kind VALUE=KIND for values of a column, KIND of "
                f"{', '.join(KINDS)}, got {quoted(text)}"
            )
        if value:
            values[value] = kind
    if every and "kind" in columns:
        raise ParamsError(f"expected either --kind {every[0]} or --map kind=..., got both")
    return ColumnMap(columns, every[0] if every else "", values, category)


def add_own(ws: Workspace, request: OwnSet) -> Suite:
    """Read a file of the user's own and write it as a suite of the workspace.

    Raises:
        ParamsError: the map names a column that the file lacks, or the file needs a map; lists its columns.
        FormatError: the file cannot be read, or a row is malformed; names the line.
        EmptySample: no row is left.
        ArtifactError: there is a suite of that name, and ``replace`` is off.
    """
    file = read_file(request.source, ())
    name = request.name or re.sub(r"[^a-z0-9_-]+", "-", Path(file.name.split(".")[0]).name.lower()).strip("-_")
    folder = suite_folder(ws, name)
    options = LoadOptions(longest=ws.params.validate_.max_prompt_characters)
    loaded = collect_rows(_items(name, file.data, file.name, request.columns, options), options, file.name)
    rows, kinds = loaded.rows, {row.kind for row in loaded.rows}
    if "task" in kinds and len(kinds) > 1:
        raise ParamsError(f"expected a task set by itself, got rows of the kinds {', '.join(sorted(kinds))}")
    categories = tuple(sorted({row.category for row in rows}))
    mapped = tuple(f"{name}={column}" for name, column in sorted(request.columns.columns.items()))
    card = Card(
        name=name,
        version="1",
        source=check_known("source (--from)", request.origin or file.uri or f"own file {file.name}"),
        revision=file.revision,
        licence=check_known("licence (--licence)", request.licence),
        format=FORMAT,
        options={"map": mapped},
        files={file.name: digest_bytes(file.data)},
        sha256=digest_bytes(prompt_lines(rows)),
        rows=count_kinds(rows),
        left_out=dict(loaded.left_out),
        categories=categories,
        longest=options.longest,
        expectations=expectations_for(kinds, {options.split}, categories, options.longest),
    )
    return write_suite(folder, card, rows, replace=request.replace)


def _records(data: bytes, where: str) -> Iterator[Record]:
    if where.endswith(".parquet") or data[:4] == b"PAR1":
        return parquet_records(data, where)
    return records(decompress(where, data), (), where, optional=None)


def _items(name: str, data: bytes, where: str, columns: ColumnMap, options: LoadOptions) -> Iterator[Item]:
    """Every row of the file, in order; of rows with one text the first is kept.

    Raises:
        FormatError: two rows of one text have different kinds.
    """
    first: dict[str, tuple[Kind, str]] = {}
    for at, cells in _records(data, where):
        if not first:
            _check_map(columns, cells, where)
        item = _item(name, cells, columns, options, at)
        if isinstance(item, Prompt):
            kind, place = first.setdefault(comparable_text(item), (item.kind, at))
            if kind != item.kind:
                raise FormatError(f"expected one kind for a text, got {kind} in {place} and {item.kind} in {at}")
            if place != at:
                item = SkippedRow("the same text as an earlier row")
        yield item


def _check_map(columns: ColumnMap, cells: Mapping[str, Any], where: str) -> None:
    """Refuse a map that does not fit the first row's columns, with the map that would."""
    there = ", ".join(quoted(column) for column in cells)
    missing = [column for column in columns.columns.values() if column not in cells]
    if missing:
        raise ParamsError(f"expected the column {quoted(missing[0])}, got the columns {there}, in {where}")
    if "prompt" not in columns.columns and "prompt" not in cells:
        raise ParamsError(
            f"expected a column for the prompt, got the columns {there}, in {where}",
            remedy="name it: --map prompt=COLUMN",
        )
    if not columns.kind and "kind" not in columns.columns and "kind" not in cells:
        raise ParamsError(
            f"expected a kind for every row ({', '.join(KINDS)}), got the columns {there}, in {where}",
            remedy="add --kind KIND for every row, or --map kind=COLUMN and for its values --kind VALUE=KIND",
        )


def _item(name: str, cells: Mapping[str, Any], columns: ColumnMap, options: LoadOptions, where: str) -> Item:
    """One row of the user's file as a prompt.

    Raises:
        FormatError: its kind is unknown, or a wrapped row names no behaviour.
    """

    def value(wanted: str) -> Any:
        return cells.get(columns.columns.get(wanted, wanted), "")

    kind, prompt = _kind(columns, value("kind"), where), value("prompt")
    digest = hashlib.sha256(f"{kind}\n{prompt}".encode(errors="surrogatepass")).hexdigest()
    identity = f"{name}-{_text(value('id')) or digest[:10]}"
    behaviour = _text(value("behaviour"))
    if kind == "wrapped" and not behaviour:
        raise FormatError(
            f"expected the behaviour of a wrapped prompt, which it shares with its direct form, got none, in {where}",
            remedy="map it (--map behaviour=COLUMN), or leave wrapped rows out: `safegene data split` wraps the others",
        )
    answer = _text(value("response")) if kind == "task" else ""
    if kind == "task" and not answer:
        return SkippedRow("no response")
    category = _text(value("category")) or columns.category or name
    return to_item(
        identity,
        prompt,
        kind,
        category,
        options,
        where,
        behaviour=behaviour or ("" if kind == "task" else None),
        response=answer,
    )


def _text(value: Any) -> str:
    """A cell as text; numbers and truth values as JSON writes them."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).strip() if isinstance(value, str | int | float) else ""


def _kind(columns: ColumnMap, value: Any, where: str) -> Kind:
    if columns.kind:
        return cast(Kind, columns.kind)
    text = _text(value)
    kind = columns.kinds.get(text, text)
    if kind not in KINDS:
        raise FormatError(
            f"expected a kind of {', '.join((*columns.kinds, *KINDS))}, got {quoted(text)}, in {where}",
            remedy=f"say what it means: --kind {text or 'VALUE'}=KIND",
        )
    return kind
