"""Bad checkpoints: each is refused before a weight is used, says expected, got and where, and leaves nothing behind."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from safegene.checkpoints import header, sources
from safegene.checkpoints.adapter import open_adapter
from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.header import read_header
from safegene.checkpoints.vocabulary import vocabulary_digest
from safegene.errors import (
    CheckpointError,
    FormatError,
    SafegeneError,
    ShapeMismatch,
    SourceError,
    TensorMissing,
    UnsafeCheckpoint,
)
from safegene.models.loading import load_model, load_tokenizer
from safegene.pipeline.stages.fetch import fetch
from safegene.workspace.params import FetchParams
from tests.factories.llamas import copy, save_adapter, save_llama

MARKUP = "model.layers.0.<script>alert(1)</script>.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("whole") / "llama")


@pytest.fixture
def llama(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good checkpoint, for a test to spoil."""
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    return copy(whole, tmp_path / "llama")


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


def test_the_good_one_passes(llama: Path) -> None:
    fetch(f"file://{llama}", out=llama.parent / "artefact")


# 1: pickles


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "x.pkl", "last.ckpt", "X.BIN"])
@pytest.mark.parametrize("alone", [True, False])
def test_a_pickle_is_never_opened(llama: Path, name: str, alone: bool) -> None:
    import pickle

    mark = llama.parent / "executed"
    (llama / name).write_bytes(pickle.dumps(Bomb(mark)))
    if alone:
        (llama / "model.safetensors").unlink()
    os.chmod(llama / name, 0)
    refused(llama, UnsafeCheckpoint, f"safetensors weights only, got '{name}'")
    for use in (load_model, load_tokenizer, open_checkpoint):
        with pytest.raises(UnsafeCheckpoint):
            use(llama)
    assert not mark.exists()


def test_a_pickle_called_safetensors_is_no_safetensors(llama: Path) -> None:
    torch.save({"w": torch.ones(2)}, llama / "model.safetensors")
    refused(llama, UnsafeCheckpoint, "header of at most")


# 2, 3, 8: headers

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


# 4: indices


@pytest.fixture
def sharded(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    return save_llama(tmp_path / "sharded", shards="80KB")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


INDEX, SECOND = "model.safetensors.index.json", "model-00002-of-00004.safetensors"
NAME = "model.layers.0.self_attn.q_proj.weight"
INDICES: dict[str, tuple[Callable[[Path], object], type[SafegeneError], str]] = {
    "missing shard": (lambda f: (f / SECOND).unlink(), FormatError, f"expected the shard {SECOND}, got no such file"),
    "extra shard": (
        lambda f: (f / "model-00009-of-00009.safetensors").write_bytes((f / SECOND).read_bytes()),
        FormatError,
        "got also model-00009",
    ),
    "truncated shard": (
        lambda f: (f / SECOND).write_bytes((f / SECOND).read_bytes()[:-7]),
        FormatError,
        f"truncated.*{SECOND}",
    ),
    "up and out": (
        lambda f: edit(f / INDEX, lambda i: i["weight_map"].update({NAME: "../model.safetensors"})),
        UnsafeCheckpoint,
        "expected shards beside the index",
    ),
    "absolute": (
        lambda f: edit(f / INDEX, lambda i: i["weight_map"].update({NAME: "/etc/passwd.safetensors"})),
        UnsafeCheckpoint,
        "expected shards beside the index",
    ),
    "pickle as a shard": (
        lambda f: edit(f / INDEX, lambda i: i["weight_map"].update({NAME: "model.bin"})),
        UnsafeCheckpoint,
        "expected shards beside the index",
    ),
    "tensor in another shard": (
        lambda f: edit(f / INDEX, lambda i: i["weight_map"].update({NAME: SECOND if _home(f) != SECOND else _last(f)})),
        FormatError,
        "which the index places there|that the index places there",
    ),
    "tensor that is nowhere": (
        lambda f: edit(f / INDEX, lambda i: i["weight_map"].update({"model.layers.9.x.weight": SECOND})),
        FormatError,
        "model.layers.9.x.weight",
    ),
    "tensor that the index hides": (
        lambda f: edit(f / INDEX, lambda i: i["weight_map"].pop(NAME)),
        FormatError,
        f"got {NAME}",
    ),
    "empty": (lambda f: edit(f / INDEX, lambda i: i["weight_map"].clear()), FormatError, "weight_map"),
    "duplicate key": (lambda f: (f / INDEX).write_text('{"weight_map": {}, "weight_map": {}}'), FormatError, "twice"),
    "two truths": (
        lambda f: (f / "model.safetensors").write_bytes((f / SECOND).read_bytes()),
        FormatError,
        "got both, which is ambiguous",
    ),
}


def _home(folder: Path) -> str:
    return str(json.loads((folder / INDEX).read_text())["weight_map"][NAME])


def _last(folder: Path) -> str:
    return sorted(path.name for path in folder.glob("*.safetensors"))[-1]


@pytest.mark.parametrize("case", INDICES)
def test_a_bad_index(sharded: Path, case: str) -> None:
    change, error, match = INDICES[case]
    change(sharded)
    refused(sharded, error, match)


# 5: names


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a/../b", "a..b", "a\nb", "a\x1b[31mred", MARKUP, "", "x" * 300, "‮evil", ".hidden"]
)
def test_a_name_that_is_a_path_markup_or_a_terminal_sequence(llama: Path, name: str) -> None:
    (llama / "model.safetensors").write_bytes(file_of(json.dumps({name: entry()}).encode(), b"0000"))
    error = refused(llama, UnsafeCheckpoint, "expected tensor names of letters")
    assert not any(c in error.message for c in "\n\x1b‮")


# 6: numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_number_that_no_weight_has(llama: Path, value: float) -> None:
    tensors = load_file(llama / "model.safetensors")
    tensors[NAME][3, 4] = value
    save_file(tensors, llama / "model.safetensors", metadata={"format": "pt"})
    refused(llama, CheckpointError, f"in {NAME}, got")


# 7: dtype and architecture


def test_integers_and_float8_are_no_weights(llama: Path) -> None:
    tensors = load_file(llama / "model.safetensors")
    tensors[NAME] = tensors[NAME].to(torch.float8_e4m3fn)
    save_file(tensors, llama / "model.safetensors", metadata={"format": "pt"})
    refused(llama, CheckpointError, f"got F8_E4M3 for {NAME}")


def test_a_checkpoint_without_projections_is_none_of_ours(llama: Path) -> None:
    save_file({"model.embed_tokens.weight": torch.zeros(50, 64)}, llama / "model.safetensors")
    with pytest.raises(CheckpointError, match="expected projections"):
        fetch(f"file://{llama}", out=llama.parent / "artefact")
    assert not (llama.parent / "artefact").exists()


def test_no_weights_no_config_no_folder(llama: Path) -> None:
    (llama / "config.json").unlink()
    refused(llama, CheckpointError, r"expected config\.json, got no such file")
    (llama / "model.safetensors").unlink()
    refused(llama, SourceError, "with safetensors weights")
    refused(llama / "absent", SourceError, "expected a checkpoint folder")


# 9: configs

CONFIGS: dict[str, tuple[dict[str, Any], type[SafegeneError], str]] = {
    "auto_map": ({"auto_map": {"AutoModel": "evil.Evil"}}, UnsafeCheckpoint, "auto_map"),
    "nested auto_map": ({"text_config": {"auto_map": {"AutoModel": "evil.Evil"}}}, UnsafeCheckpoint, "auto_map"),
    "trust_remote_code": ({"trust_remote_code": True}, UnsafeCheckpoint, "trust_remote_code"),
    "kernel of the Hub": ({"_attn_implementation": "evil/kernel"}, UnsafeCheckpoint, "evil/kernel"),
    "internal kernel": ({"_attn_implementation_internal": "evil/kernel"}, UnsafeCheckpoint, "evil/kernel"),
    "kernel per part": ({"attn_implementation": {"": "evil/kernel"}}, UnsafeCheckpoint, "evil/kernel"),
    "experts kernel": ({"_experts_implementation": "evil/kernel"}, UnsafeCheckpoint, "evil/kernel"),
    "unknown type": ({"model_type": "evil"}, UnsafeCheckpoint, "model_type of .* got 'evil'"),
    "no type": ({"model_type": None}, UnsafeCheckpoint, "got None"),
    "quantised": ({"quantization_config": {"quant_method": "gptq"}}, CheckpointError, "not quantised"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_names_code(llama: Path, case: str) -> None:
    change, error, match = CONFIGS[case]
    edit(llama / "config.json", lambda config: config.update(change))
    refused(llama, error, match)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_another_config_that_names_code(llama: Path, name: str) -> None:
    (llama / name).write_text('{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}}')
    refused(llama, UnsafeCheckpoint, f"auto_map.*{name}")
    with pytest.raises(UnsafeCheckpoint, match="auto_map"):
        load_tokenizer(llama)


@pytest.mark.parametrize("text", ["[]", "{", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 100_000])
def test_a_config_that_is_no_json_object(llama: Path, text: str) -> None:
    (llama / "config.json").write_text(text)
    refused(llama, FormatError, r"config\.json")


def test_a_config_of_any_size_is_not_read(llama: Path) -> None:
    with (llama / "config.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(UnsafeCheckpoint, match="expected at most 67108864 bytes"):
        open_checkpoint(llama)


def test_a_word_that_is_called_like_a_key_is_only_a_word(llama: Path) -> None:
    edit(llama / "tokenizer.json", lambda t: t["model"]["vocab"].update({"auto_map": 50}))
    fetch(f"file://{llama}", out=llama.parent / "artefact")


# 11: links


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "notes.txt"])
@pytest.mark.parametrize("hard", [True, False])
def test_a_link_that_leaves_the_folder(llama: Path, name: str, hard: bool) -> None:
    outside = llama.parent / "outside"
    outside.write_bytes((llama / name).read_bytes() if (llama / name).exists() else b"secret")
    (llama / name).unlink(missing_ok=True)
    os.link(outside, llama / name) if hard else (llama / name).symlink_to(outside)
    refused(llama, UnsafeCheckpoint, f"'{name}'")


def test_a_symlink_as_the_folder_a_pipe_and_too_many_files(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (llama.parent / "link").symlink_to(llama)
    refused(llama.parent / "link", CheckpointError, "or a symlink")
    os.mkfifo(llama / "config2.json")
    refused(llama, UnsafeCheckpoint, "link or device 'config2.json'")
    (llama / "config2.json").unlink()
    monkeypatch.setattr("safegene.checkpoints.folder.MAX_FILES", 3)
    refused(llama, UnsafeCheckpoint, "at most 3 files")


def test_links_inside_the_folder_leave_nothing(llama: Path) -> None:
    os.link(llama / "config.json", llama / "config.copy")
    fetch(f"file://{llama}", out=llama.parent / "artefact")


# adapters


@pytest.fixture
def lora(llama: Path) -> Path:
    return save_adapter(llama.parent / "lora", llama)


ADAPTERS: dict[str, tuple[dict[str, Any], str]] = {
    "another method": ({"peft_type": "IA3"}, "peft_type 'LORA', got 'IA3'"),
    "DoRA": ({"use_dora": True}, "use_dora"),
    "biases": ({"bias": "all"}, "bias 'none'"),
    "lora biases": ({"lora_bias": True}, "lora_bias"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "transposed": ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "initialisation that keeps the base"),
    "tokens": ({"trainable_token_indices": [1]}, "trainable_token_indices"),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_that_is_no_plain_lora(lora: Path, case: str) -> None:
    change, match = ADAPTERS[case]
    edit(lora / "adapter_config.json", lambda config: config.update(change))
    refused(lora, CheckpointError, match)


@pytest.mark.parametrize(
    "change",
    [
        {"r": 0},
        {"r": "4"},
        {"r": True},
        {"lora_alpha": None},
        {"alpha_pattern": {"a": -1}},
        {"rank_pattern": {"a": 0.5}},
        {"rank_pattern": {"(a+)+$": 4}},
    ],
)
def test_an_adapter_with_an_impossible_scale(lora: Path, change: dict[str, Any]) -> None:
    edit(lora / "adapter_config.json", lambda config: config.update(change))
    refused(lora, FormatError, f"expected a LoraScale, got {next(iter(change))}")


def test_an_adapter_whose_factors_disagree(lora: Path) -> None:
    tensors = load_file(lora / "adapter_model.safetensors")
    name = f"base_model.model.{NAME.removesuffix('.weight')}.lora_{{}}.weight"
    narrow = dict(tensors) | {name.format("A"): tensors[name.format("A")][:2].contiguous()}
    save_file(narrow, lora / "adapter_model.safetensors")
    refused(lora, ShapeMismatch, "expected factors of rank 4")
    save_file({k: v for k, v in tensors.items() if k != name.format("B")}, lora / "adapter_model.safetensors")
    refused(lora, TensorMissing, "only its other half")
    save_file(tensors | {"base_model.model.lm_head.weight": torch.ones(2, 2)}, lora / "adapter_model.safetensors")
    refused(lora, CheckpointError, "only lora_A and lora_B")
    save_file(
        tensors | {name.format("A"): tensors[name.format("A")] * float("nan")}, lora / "adapter_model.safetensors"
    )
    refused(lora, CheckpointError, r"lora_A\.weight, got NaN")


def test_an_adapter_with_a_pickle_beside_it(lora: Path) -> None:
    (lora / "adapter_model.bin").write_bytes(b"never")
    refused(lora, UnsafeCheckpoint, "adapter_model.bin")
    with pytest.raises(UnsafeCheckpoint):
        open_adapter(lora)


# 24: secrets


def test_no_secret_reaches_an_error_or_the_cache(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for uri in ("s3://key:canary-secret@bucket/x", "hf://org/model?token=canary-secret"):
        with pytest.raises(SourceError) as raised:
            sources.fetch(uri, limits=FetchParams())
        assert "canary-secret" not in repr(raised.value) + raised.value.remedy
        assert raised.value.__cause__ is None
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
    monkeypatch.setenv("HF_TOKEN", "canary-secret")
    fetch(f"file://{llama}", out=llama.parent / "artefact")
    found = [path for path in llama.parent.rglob("*") if path.is_file() and b"canary-secret" in path.read_bytes()]
    assert found == []


def test_limits_are_what_they_are() -> None:
    assert header.MAX_HEADER < 100 << 20
    assert header.MAX_TENSORS < 200_000
    assert header.MAX_METADATA < 1 << 20
    assert np.uint16(0x7F80) == 0b0111_1111_1000_0000  # the exponent bits of BF16 that `check_values` looks at


@pytest.mark.parametrize("change", [{"merges": [1]}, {"added_tokens": [{"id": 1}]}, {"added_tokens": [1]}])
def test_a_malformed_tokenizer_is_no_stack_trace(llama: Path, change: dict[str, Any]) -> None:
    edit(llama / "tokenizer.json", lambda t: (t["model"] if "merges" in change else t).update(change))
    with pytest.raises(FormatError, match="merges and added tokens"):
        vocabulary_digest(llama)
