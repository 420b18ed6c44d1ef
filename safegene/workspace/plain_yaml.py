"""Plain YAML 1.2, as DVC reads it: text as keys; no tags, aliases, duplicate keys, NaN, infinity, lone surrogates.

Plain scalars are those of the core schema: ``3e-4`` is a number, ``010`` is ten, and ``yes``, ``1:30`` and
``2026-01-01`` are text (in YAML 1.1 they are a boolean, ninety and a date). Inside ``[...]`` and ``{...}`` text with a
colon must be quoted: DVC's parser takes the colon of ``[file:///models]`` for that of a mapping, and fails.
"""

import math
import re
from collections.abc import Hashable
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from safegene.errors import ParamsError

_SCALARS = {
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


class UnquotedColon(yaml.YAMLError):
    """Text with a colon that must be quoted."""


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without anchors, which alias bombs need, and without duplicate keys."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # those below, not those of YAML 1.1
    in_flow = 0  # how many ``[`` and ``{`` are open

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        flow = bool(getattr(event, "flow_style", False))
        if isinstance(event, yaml.ScalarEvent) and event.style is None and self.in_flow and ":" in event.value:
            raise UnquotedColon(
                f"{event.value} without quotes between brackets, which DVC cannot read{event.start_mark}"
            )
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.YAMLError(f"anchors and aliases are not allowed{event.start_mark}")
        if tag := getattr(event, "tag", None):
            raise yaml.YAMLError(f"the tag {tag}{event.start_mark}")
        self.in_flow += flow
        node = super().compose_node(parent, index)
        self.in_flow -= flow
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if other := [key for key in keys if not isinstance(key, str)]:
            raise yaml.YAMLError(f"the key {other[0]!r}, which is no text{node.start_mark}")
        if len(set(keys)) != len(keys):
            raise yaml.YAMLError(f"a key occurs twice{node.start_mark}")
        return super().construct_mapping(node, deep)

    def construct_core_int(self, node: yaml.ScalarNode) -> int:
        """An integer of the core schema: decimal, ``0o`` or ``0x``."""
        text = str(node.value)
        return int(text[2:], {"0o": 8, "0x": 16}[text[:2]]) if text[:2] in ("0o", "0x") else int(text)


class _Dumper(yaml.SafeDumper):
    """Safe YAML whose text is quoted where YAML 1.1 or 1.2 would read another type."""


for _name, (_form, _first) in _SCALARS.items():
    for _class in (_StrictLoader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_form})\\Z"), [*_first, ""])
_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_core_int)


def dump_yaml(value: Any) -> str:
    """Plain data as YAML, keys sorted."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=True)
    return text


def load_yaml(path: Path) -> Any:
    """Read plain YAML (see the module).

    Raises:
        ParamsError: the file is missing, or is not plain YAML.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ParamsError(
            f"expected {path}, got no such file", remedy="run inside a workspace, or create one: `safegene init DIR`"
        ) from None
    return parse_yaml(data, where=path)


def parse_yaml(data: bytes, *, where: object) -> Any:
    """The content of a file of plain YAML.

    Raises:
        ParamsError: it is not plain YAML.
    """
    try:
        return deepcopy(_parsed(data))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        remedy = (
            "put it in double quotes, or on a line of its own after '- '" if isinstance(error, UnquotedColon) else ""
        )
        raise ParamsError(
            f"expected plain YAML in {where}, got {' '.join(str(error).split())}", remedy=remedy
        ) from error


@lru_cache(maxsize=32)
def _parsed(data: bytes) -> Any:
    """A run reads ``params.yaml`` a hundred times, and parsing it takes much longer than copying the result."""
    content = yaml.load(data.decode("utf-8"), Loader=_StrictLoader)  # noqa: S506 (a SafeLoader)
    _require_plain(content)
    return content


def _require_plain(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"the number {value}")
    if isinstance(value, str) and any(0xD800 <= ord(character) < 0xE000 for character in value):
        raise ValueError(f"a lone surrogate in {ascii(value)[:60]}")
    inner = (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in inner:
        _require_plain(item)
