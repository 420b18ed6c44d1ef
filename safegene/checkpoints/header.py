"""The header of a safetensors file, read in pure Python; each limit is checked before memory is allocated.

A file is 8 bytes N (little endian), N bytes of JSON, then the data. N MUST be at most `MAX_HEADER`. The JSON MUST have
each key once, names of letters, digits and ``_.-`` only, known dtypes, and offsets that match dtype and shape and cover
the data exactly, without gap, overlap or rest. The safetensors library is less strict: it takes the last of two equal
keys and allows any name.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from safegene.errors import FormatError, UnsafeCheckpoint
from safegene.workspace.digest import strict_json

MAX_HEADER = 32 << 20  # bytes; 100,000 tensors need about 12 MiB, and parsed JSON is ten times its text
MAX_TENSORS = 100_000
MAX_METADATA = 256 << 10  # bytes
MAX_DIMENSIONS = 8
BITS: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 8),
}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,255}")


@dataclass(frozen=True)
class TensorSpec:
    """The place of one tensor in a file.

    Attributes:
        name: as in the file.
        dtype: as safetensors spells it, such as ``BF16``.
        shape: sizes; () for a scalar.
        start: first byte, counted from the start of the file.
        end: one past the last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorSpec]:
    """Tensor name -> its place, in the order of the data.

    Raises:
        UnsafeCheckpoint: a length, a count or a name exceeds its limit.
        FormatError: the header is malformed, or does not describe the file's bytes exactly.
    """
    with path.open("rb") as file:
        return parse_header(lambda count: _first(file, count), path.stat().st_size, path)


def parse_header(first: Callable[[int], bytes], size: int, where: object) -> dict[str, TensorSpec]:
    """`read_header` of a file that is read another way.

    Args:
        first: the file's first bytes, as many as it is asked for.
        size: of the file, in bytes.
        where: what the file is called in messages.

    Raises:
        UnsafeCheckpoint, FormatError: as `read_header`.
    """
    length = int.from_bytes(first(8), "little") if size >= 8 else 0
    if size < 8 or length > MAX_HEADER:
        raise UnsafeCheckpoint(f"expected a header of at most {MAX_HEADER} bytes, got {length}, in {where}")
    if 8 + length > size:
        raise FormatError(f"expected a header of {length} bytes, got a file of {size} bytes, in {where}")
    specs = _parse(first(8 + length)[8:], 8 + length, where)
    _require_tiling(specs, 8 + length, size, where)
    return {spec.name: spec for spec in specs}


def _first(file: BinaryIO, count: int) -> bytes:
    file.seek(0)
    return file.read(count)


def check_name(name: str, path: object) -> None:
    """Refuse a tensor name that could act as a path, markup or a terminal escape.

    Raises:
        UnsafeCheckpoint: the name holds other characters than letters, digits and ``_.-``, or ``..``.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise UnsafeCheckpoint(f"expected tensor names of letters, digits and _.- , got {name[:80]!r}, in {path}")


def _parse(text: bytes, base: int, path: object) -> list[TensorSpec]:
    if not text.startswith(b"{"):
        raise FormatError(f"expected a header that begins with '{{', got {text[:8]!r}, in {path}")
    try:
        raw = strict_json(text.decode("utf-8"), where=str(path))
    except UnicodeDecodeError as error:
        raise FormatError(f"expected a header in UTF-8, got {error.reason}, in {path}") from None
    _check_metadata(raw.pop("__metadata__", {}), path)
    if len(raw) > MAX_TENSORS:
        raise UnsafeCheckpoint(f"expected at most {MAX_TENSORS} tensors, got {len(raw)}, in {path}")
    specs = [_spec(name, entry, base, path) for name, entry in raw.items()]
    return sorted(specs, key=lambda spec: (spec.start, spec.end))


def _check_metadata(metadata: Any, path: object) -> None:
    texts = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    if not texts:
        raise FormatError(f"expected __metadata__ to map text to text, got {type(metadata).__name__}, in {path}")
    size = sum(len(key) + len(value) for key, value in metadata.items())
    if size > MAX_METADATA:
        raise UnsafeCheckpoint(f"expected at most {MAX_METADATA} characters of __metadata__, got {size}, in {path}")


def _spec(name: str, entry: Any, base: int, path: object) -> TensorSpec:
    check_name(name, path)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"expected dtype, shape and data_offsets for tensor {name}, got another form, in {path}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise FormatError(f"expected a dtype of {sorted(BITS)}, got {str(dtype)[:40]!r} for tensor {name}, in {path}")
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS or not _sizes(offsets) or len(offsets) != 2:
        raise FormatError(f"expected sizes and two offsets, got others for tensor {name}, in {path}")
    spec = TensorSpec(name, dtype, tuple(shape), base + offsets[0], base + offsets[1])
    expected = spec.numel * BITS[dtype] // 8
    if spec.end - spec.start != expected:
        got = spec.end - spec.start
        raise FormatError(f"expected {expected} bytes for {dtype}{list(shape)}, got {got} for tensor {name}, in {path}")
    return spec


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 48 for value in values)


def _require_tiling(specs: list[TensorSpec], start: int, size: int, path: object) -> None:
    at = start
    for spec in specs:
        if spec.start != at:
            raise FormatError(f"expected tensor {spec.name} to begin at byte {at}, got {spec.start}, in {path}")
        at = spec.end
    if at != size:
        hint = "the file is truncated" if size < at else "bytes follow the last tensor"
        raise FormatError(f"expected {at} bytes, got {size} ({hint}), in {path}", remedy="fetch the file again")
