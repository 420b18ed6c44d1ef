"""Plain YAML: no tags, aliases, duplicate keys, NaN or infinity."""

import math
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from safegene.errors import ParamsError


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without anchors, which alias bombs need, and without duplicate keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.YAMLError(f"anchors and aliases are not allowed{event.start_mark}")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len({str(key) for key in keys}) != len(keys):
            raise yaml.YAMLError(f"a key occurs twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> Any:
    """Read plain YAML: no tags, aliases, duplicate keys, NaN or infinity.

    Raises:
        ParamsError: the file is missing, or is not plain YAML.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)  # noqa: S506 (a SafeLoader)
        _require_finite(data)
    except FileNotFoundError:
        raise ParamsError(
            f"expected {path}, got no such file", remedy="run inside a workspace, or create one: `safegene init DIR`"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ParamsError(f"expected plain YAML in {path}, got {' '.join(str(error).split())}") from error
    return data


def _require_finite(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"the number {value}")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _require_finite(item)
