"""Bytes to typed values: strict JSON, then a pydantic model; one `FormatError` that names field and file.

Usage::

    class Note(Strict):
        name: str

    note = parse_json(Note, path.read_bytes(), where=str(path))
    notes = parse_jsonl(Note, path.read_bytes(), where=str(path))
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from safegene.errors import FormatError
from safegene.text import redact_text
from safegene.workspace.digest import canonical_json, strict_json

T = TypeVar("T")
SHOWN = 3  # problems that one error names


class Strict(BaseModel):
    """A base class of models: immutable, no unknown keys, no conversion between types, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)


def parse(model: type[T], value: Any, *, where: str) -> T:
    """A plain JSON value as a model (a pydantic model, a dataclass, or any type that pydantic knows).

    A JSON list becomes a tuple where a field asks for one; nothing else is converted. A model with the class variable
    ``OPTIONAL_KEYS`` needs every other key, also where its field has a default: in a file an absent key says nothing.

    Raises:
        FormatError: names ``where``, the first fields that are wrong, and what was expected of each.
    """
    _require_keys(model, value, where)
    try:
        return cast(T, _adapter(cast(Any, model)).validate_json(_bytes(value, where), strict=True))
    except ValidationError as error:
        raise FormatError(f"expected {_name(model)}, got {problems(error)}, in {where}") from None


def _bytes(value: Any, where: str) -> bytes:
    try:
        return canonical_json(value)
    except FormatError as error:
        raise FormatError(f"{error.message}, in {where}") from None


def parse_json(model: type[T], data: bytes | str, *, where: str) -> T:
    """A file's content as one model.

    Raises:
        FormatError: it is not strict JSON (see `strict_json`), or not the model.
    """
    return parse(model, strict_json(data, where=where), where=where)


def parse_jsonl(model: type[T], data: bytes, *, where: str) -> Iterator[T]:
    """A file of JSON lines as models, one per line; blank lines are skipped.

    Raises:
        FormatError: as `parse_json`; it names the line.
    """
    for number, line in json_lines(data):
        yield parse_json(model, line, where=f"{where}, line {number}")


def json_lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The number (from 1) and the bytes of every line that is not blank."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            yield number, line


def problems(error: ValidationError) -> str:
    """The first problems that pydantic reports, on one line: field, rule and value of each."""
    errors = error.errors()
    shown = [(item, redact_text(repr(item["input"]))[:60]) for item in errors[:SHOWN]]
    named = [f"{_field(item['loc'])}: {item['msg']} (got {value})" for item, value in shown]
    return "; ".join(named) + (f"; and {len(errors) - SHOWN} more" if len(errors) > SHOWN else "")


def _field(location: tuple[int | str, ...]) -> str:
    return ".".join(map(str, location)) or "the value"


def _require_keys(model: Any, value: Any, where: str) -> None:
    optional = getattr(model, "OPTIONAL_KEYS", None)
    if optional is None or not isinstance(value, Mapping):
        return
    if is_dataclass(model):
        keys = {field.name for field in fields(model)}
    else:
        keys = {field.alias or name for name, field in model.model_fields.items()}
    if missing := sorted(keys - set(optional) - set(value)):
        raise FormatError(f"expected {_name(model)} with the keys {', '.join(missing)}, got none of them, in {where}")


@cache
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def _name(model: type[Any]) -> str:
    return f"a {getattr(model, '__name__', str(model))}"
