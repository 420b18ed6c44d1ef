"""Bad checkpoints: each is refused before a weight is used, says expected, got and where, and leaves nothing behind."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from safegene.checkpoints import header, sources
from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.record import read_record
from safegene.checkpoints.vocabulary import vocabulary_digest
from safegene.errors import (
    CheckpointError,
    FormatError,
    SafegeneError,
    SourceError,
    UnsafeCheckpoint,
)
from safegene.models.loading import load_model, load_tokenizer
from safegene.pipeline.stages.fetch import fetch
from safegene.workspace.params import FetchParams
from tests.factories.hostile import edit, refused
from tests.factories.llamas import save_llama


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
def test_a_pickle_is_never_opened(llama: Path, name: str) -> None:
    import pickle

    mark = llama.parent / "executed"
    (llama / "model.safetensors").unlink()
    (llama / name).write_bytes(pickle.dumps(Bomb(mark)))
    os.chmod(llama / name, 0)
    refused(llama, UnsafeCheckpoint, f"safetensors weights, got pickle files such as '{name}'")
    for use in (load_model, load_tokenizer, open_checkpoint):
        with pytest.raises(UnsafeCheckpoint):
            use(llama)
    assert not mark.exists()


def test_pickles_beside_the_weights_are_ignored_and_never_opened(
    llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import pickle

    mark, clean = llama.parent / "executed", open_checkpoint(llama).digest
    others = (
        "training_args.bin",
        "optimizer.pt",
        "rng_state_0.pth",
        "pytorch_model.bin",
        "X.BIN",
        "trainer_state.json",
    )
    for name in others:
        (llama / name).write_bytes(pickle.dumps(Bomb(mark)))
    opened, real = list[str](), Path.open

    def spy(path: Path, *args: Any, **kwargs: Any) -> Any:
        opened.append(path.name)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", spy)
    with caplog.at_level("INFO", logger="safegene"):
        for _ in range(2):
            fetch(f"file://{llama}", out=llama.parent / "artefact")
    assert read_record(llama.parent / "artefact").digest == clean
    said = [record.getMessage() for record in caplog.records if "ignored" in record.getMessage()]
    assert len(said) == 1
    assert all(name in said[0] for name in others)
    assert "config.json" in opened
    assert not set(others) & set(opened)
    load_model(llama)
    assert not mark.exists()


def test_a_pickle_called_safetensors_is_no_safetensors(llama: Path) -> None:
    torch.save({"w": torch.ones(2)}, llama / "model.safetensors")
    refused(llama, UnsafeCheckpoint, "header of at most")


# 4: indices


@pytest.fixture
def sharded(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    return save_llama(tmp_path / "sharded", shards="80KB")


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


def test_the_index_names_shards_of_any_spelling(sharded: Path) -> None:
    (sharded / "consolidated.safetensors").write_bytes(b"no file of the checkpoint")
    shards = sorted(path.name for path in sharded.glob("model-*.safetensors"))
    names = {old: f"model.safetensors-{i:05}-of-{len(shards):05}.safetensors" for i, old in enumerate(shards, start=1)}
    for old, new in names.items():
        (sharded / old).rename(sharded / new)
    edit(sharded / INDEX, lambda i: i.update(weight_map={name: names[old] for name, old in i["weight_map"].items()}))
    fetch(f"file://{sharded}", out=sharded.parent / "artefact")
    record = read_record(sharded.parent / "artefact")
    assert set(names.values()) <= set(record.files)
    assert "consolidated.safetensors" not in record.files
    assert record.fingerprint == sources.fingerprint(f"file://{sharded}") == record.digest
    assert [found.uri for found in sources.discover(f"file://{sharded.parent}")[0]] == [f"file://{sharded}"]
    (sharded / names[SECOND]).unlink()
    refused_again = pytest.raises(FormatError, match=f"expected the shard {names[SECOND]}, got no such file")
    with refused_again:
        fetch(f"file://{sharded}", out=sharded.parent / "again")


def _home(folder: Path) -> str:
    return str(json.loads((folder / INDEX).read_text())["weight_map"][NAME])


def _last(folder: Path) -> str:
    return sorted(path.name for path in folder.glob("*.safetensors"))[-1]


@pytest.mark.parametrize("case", INDICES)
def test_a_bad_index(sharded: Path, case: str) -> None:
    change, error, match = INDICES[case]
    change(sharded)
    refused(sharded, error, match)


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


def test_weights_that_are_not_those_of_the_config_are_refused(llama: Path) -> None:
    save_file({"model.embed_tokens.weight": torch.zeros(50, 64)}, llama / "model.safetensors")
    with pytest.raises(CheckpointError, match="expected the tensor model.layers.0"):
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
    "a billion labels": ({"num_labels": 10**9}, UnsafeCheckpoint, "at most 10000 labels.*num_labels = 1000000000"),
    "nested labels": ({"text_config": {"num_labels": 10**9}}, UnsafeCheckpoint, "num_labels = 1000000000"),
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


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "added_tokens.json"])
@pytest.mark.parametrize("hard", [True, False])
def test_a_link_that_leaves_the_folder(llama: Path, name: str, hard: bool) -> None:
    outside = llama.parent / "outside"
    outside.write_bytes((llama / name).read_bytes() if (llama / name).exists() else b"secret")
    (llama / name).unlink(missing_ok=True)
    os.link(outside, llama / name) if hard else (llama / name).symlink_to(outside)
    refused(llama, UnsafeCheckpoint, f"'{name}'")


@pytest.mark.parametrize("hard", [True, False])
def test_a_link_that_is_no_file_of_the_checkpoint_is_not_followed(llama: Path, hard: bool) -> None:
    outside = llama.parent / "outside"
    outside.write_bytes(b"secret")
    os.link(outside, llama / "notes.txt") if hard else (llama / "notes.txt").symlink_to(outside)
    outside.chmod(0)
    fetch(f"file://{llama}", out=llama.parent / "artefact")
    assert "notes.txt" not in read_record(llama.parent / "artefact").files


def test_a_symlink_as_the_folder_a_pipe_and_too_many_files(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (llama.parent / "link").symlink_to(llama)
    refused(llama.parent / "link", CheckpointError, "or a symlink")
    os.mkfifo(llama / "added_tokens.json")
    refused(llama, UnsafeCheckpoint, "link or device 'added_tokens.json'")
    (llama / "added_tokens.json").unlink()
    monkeypatch.setattr("safegene.checkpoints.unsafe.MAX_FILES", 3)
    refused(llama, UnsafeCheckpoint, "at most 3 files")


def test_links_inside_the_folder_leave_nothing(llama: Path) -> None:
    os.link(llama / "config.json", llama / "config.copy")
    fetch(f"file://{llama}", out=llama.parent / "artefact")


# 24: secrets


def test_no_secret_reaches_an_error_or_the_cache(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for uri in ("s3://key:canary-secret@bucket/x", "hf://org/model?token=canary-secret"):
        with pytest.raises(SourceError, match="expected a source without secrets") as raised:
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
