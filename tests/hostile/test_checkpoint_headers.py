"""Malformed headers of safetensors files are refused before memory is allocated."""

import json
import struct
from pathlib import Path

import pytest

from safegene.checkpoints.header import read_header
from safegene.errors import FormatError, SafegeneError, UnsafeCheckpoint
from tests.factories.hostile import entry, file_of, refused

MARKUP = "model.layers.0.<script>alert(1)</script>.weight"


HEADERS: dict[str, tuple[bytes, type[SafegeneError], str]] = {
    "length 2^63": (
        file_of(b"{}", length=1 << 63),
        UnsafeCheckpoint,
        "at most 33554432 bytes, got 9223372036854775808",
    ),
    "length over the limit": (file_of(b"{}", length=(100 << 20) + 1), UnsafeCheckpoint, "at most 33554432 bytes"),
    "length over the file": (file_of(b"{}", length=1000), FormatError, "1000 bytes, got a file of 10 bytes"),
    "no header": (b"\x02", UnsafeCheckpoint, "header of at most"),
    "empty file": (b"", UnsafeCheckpoint, "header of at most"),
    "no JSON": (file_of(b"{not json"), FormatError, "expected JSON"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), FormatError, "in UTF-8"),
    "UTF-16": (file_of('{"a": 1}'.encode("utf-16")), FormatError, "begins with '{'"),
    "a list": (file_of(b"[]"), FormatError, "begins with '{'"),
    "deep": (file_of(b'{"a":' + b"[" * 100_000), FormatError, "expected JSON"),
    "huge number": (file_of(b'{"a":' + b"9" * 10_000 + b"}"), FormatError, "expected JSON"),
    "duplicate key": (
        file_of(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}'),
        FormatError,
        "'a'. twice",
    ),
    "no object": (file_of(b'{"a": 1}'), FormatError, "expected dtype, shape and data_offsets for tensor a"),
    "unknown dtype": (file_of(json.dumps({"a": entry("F7")}).encode(), b"0000"), FormatError, "got 'F7' for tensor a"),
    "list as dtype": (
        file_of(json.dumps({"a": entry() | {"dtype": []}}).encode(), b"0000"),
        FormatError,
        "expected a dtype",
    ),
    "negative size": (file_of(json.dumps({"a": entry(shape=(-1,))}).encode(), b"0000"), FormatError, "expected sizes"),
    "boolean size": (file_of(json.dumps({"a": entry(shape=(True,))}).encode(), b"0000"), FormatError, "expected sizes"),
    "overflowing size": (
        file_of(json.dumps({"a": entry(shape=(1 << 40, 1 << 40))}).encode(), b"0000"),
        FormatError,
        "got 4 for tensor a",
    ),
    "many dimensions": (file_of(json.dumps({"a": entry(shape=[1] * 9)}).encode(), b"0000"), FormatError, "two offsets"),
    "backwards": (file_of(json.dumps({"a": entry(offsets=(4, 0))}).encode(), b"0000"), FormatError, "got -4"),
    "past the end": (file_of(json.dumps({"a": entry()}).encode(), b"00"), FormatError, "truncated"),
    "tail": (file_of(json.dumps({"a": entry()}).encode(), b"00000"), FormatError, "bytes follow the last tensor"),
    "gap": (
        file_of(json.dumps({"a": entry(), "b": entry(offsets=(8, 12))}).encode(), b"0" * 12),
        FormatError,
        "tensor b to begin at byte",
    ),
    "overlap": (
        file_of(json.dumps({"a": entry(), "b": entry(offsets=(2, 6))}).encode(), b"0" * 6),
        FormatError,
        "tensor b to begin at byte",
    ),
    "metadata of numbers": (file_of(b'{"__metadata__": {"a": 1}}'), FormatError, "map text to text"),
    "1 MB of metadata": (
        file_of(json.dumps({"__metadata__": {"a": "x" * (1 << 20)}}).encode()),
        UnsafeCheckpoint,
        "characters of __metadata__, got 1048577",
    ),
    "200,000 tensors": (
        file_of(json.dumps({f"t{i}": entry("U8", (0,), (0, 0)) for i in range(200_000)}).encode()),
        UnsafeCheckpoint,
        "at most 100000 tensors, got 200000",
    ),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_bad_header(llama: Path, case: str) -> None:
    data, error, match = HEADERS[case]
    (llama / "model.safetensors").write_bytes(data)
    refused(llama, error, match)


def test_a_long_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 1 << 40))
        file.truncate(1 << 41)  # a sparse file: reading it would take the whole memory
    with pytest.raises(UnsafeCheckpoint, match="got 1099511627776"):
        read_header(path)


def test_a_duplicate_among_very_many_keys_is_found_quickly(llama: Path) -> None:
    one = '"t{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    text = "{" + ",".join(one.format(i % 60_000) for i in range(60_001)) + "}"
    (llama / "model.safetensors").write_bytes(file_of(text.encode()))
    refused(llama, FormatError, r"\['t0'\] twice")


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a/../b", "a..b", "a\nb", "a\x1b[31mred", MARKUP, "", "x" * 300, "‮evil", ".hidden"]
)
def test_a_name_that_is_a_path_markup_or_a_terminal_sequence(llama: Path, name: str) -> None:
    (llama / "model.safetensors").write_bytes(file_of(json.dumps({name: entry()}).encode(), b"0000"))
    error = refused(llama, UnsafeCheckpoint, "expected tensor names of letters")
    assert not any(c in error.message for c in "\n\x1b‮")
