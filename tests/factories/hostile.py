"""Spoiled checkpoints: files of raw bytes, edits of JSON, and the check that the stage ``fetch`` refuses a folder."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safegene.errors import SafegeneError
from safegene.pipeline.stages.fetch import fetch


def refused(folder: Path, error: type[SafegeneError], match: str) -> SafegeneError:
    """The stage refuses the folder, keeps no copy, writes no artefact, and says which file."""
    out = folder.parent / "artefact"
    with pytest.raises(error, match=match) as raised:
        fetch(f"file://{folder}", out=out)
    assert raised.type is error
    assert "expected" in raised.value.message
    assert "got" in raised.value.message
    assert str(folder) in raised.value.message
    cache = folder.parent / "cache"
    assert not out.exists()
    assert not (cache / "checkpoints").exists()
    assert [path for path in cache.glob("parts/*") if path.is_dir()] == []
    return raised.value


def file_of(text: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
