"""Strict readers of CSV, TSV, JSON lines and JSON files from untrusted sources.

A byte-order mark is skipped. A NUL byte, bytes that are not UTF-8, a missing or undocumented column, and a row of
another length are refused; the error names the line.
"""

import csv
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from safegene.datasets.prompts import MAX_BYTES
from safegene.errors import EmptySample, FormatError
from safegene.workspace.digest import strict_json
from safegene.workspace.parsing import json_lines

Record = tuple[str, dict[str, Any]]
"""Place of a row (file and line), and its values by column."""

_PACKED = (".gz", ".xz")


def decompress(name: str, data: bytes, *, limit: int = MAX_BYTES) -> bytes:
    """The content of a ``.gz`` or ``.xz`` file; the bytes of any other file unchanged.

    Raises:
        FormatError: the content is larger than ``limit`` bytes, damaged, or Parquet.
    """
    if name.endswith(".parquet") or data[:4] == b"PAR1":
        raise FormatError(
            f"expected CSV or JSON lines, got Parquet, in {name}",
            remedy="convert it once (pandas: `read_parquet(...).to_json(..., orient='records', lines=True)`)",
        )
    ending = next((ending for ending in _PACKED if name.endswith(ending)), "")
    if ending:
        try:
            with gzip.open(io.BytesIO(data)) if ending == ".gz" else lzma.open(io.BytesIO(data)) as file:
                data = file.read(limit + 1)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise FormatError(f"expected a whole {ending} file, got {error}, in {name}") from None
    if len(data) > limit:
        raise FormatError(f"expected at most {limit} bytes, got more, in {name}")
    return data


def decode_text(data: bytes, where: str) -> str:
    """The bytes decoded as UTF-8, without byte-order mark.

    Raises:
        FormatError: they are more than 256 MiB, contain a NUL byte, or are not UTF-8.
    """
    if len(data) > MAX_BYTES:
        raise FormatError(f"expected at most {MAX_BYTES} bytes, got {len(data)}, in {where}")
    if (at := data.find(b"\0")) >= 0:
        raise FormatError(f"expected text, got a NUL byte at {at}, in {where}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"expected UTF-8, got {error.reason} at byte {error.start}, in {where}") from None


def records(
    data: bytes, columns: Sequence[str], where: str, *, optional: Sequence[str] | None = ()
) -> Iterator[Record]:
    """Rows of a JSON-lines file (its first character is ``{``), or of a CSV or TSV file with a header.

    ``optional``: columns that may be there too; None for any.
    """
    text = decode_text(data, where)
    if text.lstrip()[:1] == "{":
        return _lines(text, columns, where, optional)
    return _table(text, columns, where, optional)


def csv_records(data: bytes, columns: Sequence[str], where: str, *, optional: Sequence[str] = ()) -> Iterator[Record]:
    """Rows of a CSV or TSV file with a header; every value is text."""
    return _table(decode_text(data, where), columns, where, optional)


def json_records(data: bytes, columns: Sequence[str], where: str, *, optional: Sequence[str] = ()) -> Iterator[Record]:
    """Rows of a JSON-lines file."""
    return _lines(decode_text(data, where), columns, where, optional)


def json_value(data: bytes, where: str) -> Any:
    """The value of a JSON file."""
    return strict_json(decode_text(data, where), where=where)


def parquet_records(data: bytes, where: str) -> Iterator[Record]:
    """Rows of a Parquet file; an absent value is "".

    Raises:
        FormatError: no reader of Parquet is installed, or the file is malformed.
    """
    import pandas

    try:
        frame = pandas.read_parquet(io.BytesIO(data))
    except ImportError:
        raise FormatError(
            f"expected CSV or JSON lines, or a Parquet reader (pyarrow, which safegene does not install), got none, "
            f"for {where}",
            remedy="`pip install pyarrow`, or write the file as CSV or JSON lines",
        ) from None
    except (ValueError, OSError) as error:
        raise FormatError(f"expected a Parquet file, got {error}, in {where}") from None
    for number, row in enumerate(frame.astype(object).where(frame.notna(), "").to_dict("records"), start=1):
        yield f"{where}, row {number}", {str(column): value for column, value in row.items()}


def _lines(text: str, columns: Sequence[str], where: str, optional: Sequence[str] | None) -> Iterator[Record]:
    empty = True
    for number, line in json_lines(text.encode()):
        at = f"{where}, line {number}"
        row = strict_json(line.decode(), where=at)
        if not isinstance(row, dict):
            raise FormatError(f"expected a JSON object, got {type(row).__name__}, in {at}")
        _check_columns(list(row), columns, optional, at)
        empty = False
        yield at, row
    if empty:
        raise EmptySample(f"expected at least one row, got none, in {where}")


def _table(text: str, columns: Sequence[str], where: str, optional: Sequence[str] | None) -> Iterator[Record]:
    header_line = text.partition("\n")[0]
    delimiter = "\t" if "\t" in header_line and "," not in header_line else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header, empty = list[str](), True
    try:
        header = next(reader, [])
        _check_columns(header, columns, optional, where)
        for cells in reader:
            if not cells:
                continue
            at = f"{where}, line {reader.line_num}"
            if len(cells) != len(header):
                raise FormatError(f"expected {len(header)} columns, got {len(cells)}, in {at}")
            empty = False
            yield at, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise FormatError(f"expected CSV, got {error}, in {where}, line {reader.line_num}") from None
    if empty:
        raise EmptySample(f"expected at least one row, got none, in {where}")


def _check_columns(header: Sequence[str], columns: Sequence[str], optional: Sequence[str] | None, where: str) -> None:
    missing = [name for name in columns if name not in header]
    undocumented = [name for name in header if optional is not None and name not in (*columns, *optional)]
    if missing or undocumented or len(set(header)) != len(header):
        wanted = ", ".join(columns) + (f" (and perhaps {', '.join(map(repr, optional))})" if optional else "")
        got = ", ".join(map(repr, header[:12])) or "none"
        raise FormatError(
            f"expected the columns {wanted}, each once, got {got}, in {where}",
            remedy="check that the file belongs to this format and has the documented version",
        )
