"""A family is compared by what it is: resolved configs, tensors after tying, vocabularies that may have grown."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.record import read_record
from safegene.checkpoints.structure import read_structure
from safegene.errors import CheckpointError, FormatError, SafegeneError, ShapeMismatch, TensorMissing
from safegene.models.config import forward_values
from safegene.models.family import architecture, require_same_architecture
from safegene.pipeline.stages.fetch import fetch
from safegene.workspace.digest import canonical_json
from safegene.workspace.params import FetchParams
from tests.factories.hostile import edit
from tests.factories.llamas import CHAT_TEMPLATE, WORDS, copy, save_adapter, save_llama

SMALL: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "olmo2", "granite")
LIMITS = FetchParams(model_types=TYPES)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@pytest.fixture(autouse=True)
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save_llama(tmp_path / "llama")


@pytest.fixture
def aligned(llama: Path, tmp_path: Path) -> Path:
    """The artefact of `llama` as the family's aligned model."""
    fetch(f"file://{llama}", out=tmp_path / "aligned")
    return tmp_path / "aligned"


def save(folder: Path, model_type: str, **values: Any) -> Path:
    """A tiny random model of a type, with the word-level tokenizer of `save_llama`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(resolved(model_type, **values)).save_pretrained(folder)
    model = {"type": "WordLevel", "vocab": _words(WORDS), "unk_token": "w0"}
    tokenizer = {"version": "1.0", "added_tokens": [], "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


def resolved(model_type: str, **values: Any) -> PretrainedConfig:
    return AutoConfig.for_model(model_type, **(SMALL | values))


def target(folder: Path, family: Path, limits: FetchParams = LIMITS) -> Path:
    """The artefact of a target."""
    out = folder.parent / f"{folder.name}-artefact"
    fetch(f"file://{folder}", out=out, family=family, params=limits)
    return out


def refused(folder: Path, family: Path, error: type[SafegeneError], match: str) -> SafegeneError:
    with pytest.raises(error, match=match) as raised:
        target(folder, family)
    assert not (folder.parent / f"{folder.name}-artefact").exists()
    return raised.value


def digest_of(folder: Path) -> str:
    return architecture(open_checkpoint(folder), str(folder)).digest


def _words(count: int) -> dict[str, int]:
    return {f"w{i}": i for i in range(count)}


# configs


@pytest.mark.parametrize("model_type", TYPES)
def test_a_default_that_is_left_out_and_an_old_spelling_are_no_difference(model_type: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "family", model_type)
    fetch(f"file://{folder}", out=tmp_path / "aligned", params=LIMITS)
    other = copy(folder, tmp_path / "published")
    raw = json.loads((other / "config.json").read_text())
    sparse = AutoConfig.for_model(model_type, **SMALL).to_diff_dict() | SMALL | {"model_type": model_type}
    if "rope_theta" in (rope := raw.get("rope_parameters") or {}):
        sparse = {key: value for key, value in sparse.items() if key != "rope_parameters"}
        sparse |= {"rope_theta": rope["rope_theta"], "rope_scaling": None}
    sparse.pop("head_dim", None)
    assert "head_dim" not in sparse
    assert len(sparse) < len(raw)
    wide = {"head_dim": raw["head_dim"]} if model_type in _WIDE else {}
    (other / "config.json").write_text(json.dumps(sparse | wide))
    record = read_record(target(other, tmp_path / "aligned"))
    assert digest_of(other) == digest_of(folder)
    assert record.config == read_record(tmp_path / "aligned").config


_WIDE = ("qwen3", "gemma2")  # their default head_dim is a number, so it is part of these small configs


@pytest.mark.parametrize(
    "change",
    [
        {"use_cache": False},
        {"torch_dtype": "bfloat16", "transformers_version": "4.40.0", "architectures": ["Other"]},
        {"eos_token_id": [1, 2], "pad_token_id": 3, "bos_token_id": None},
        {"attention_dropout": 0.1, "initializer_range": 0.01},
        {"max_position_embeddings": 131072},
        {"unsloth_fixed": True, "unsloth_version": "2026.1", "_name_or_path": "x"},
        {"num_labels": 3},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_no_forward_pass_reads_is_no_difference(change: dict[str, Any], llama: Path, aligned: Path) -> None:
    other = copy(llama, llama.parent / "other")
    edit(other / "config.json", lambda config: config.update(change))
    assert read_record(target(other, aligned)).config == read_record(aligned).config
    assert digest_of(other) == read_record(aligned).architecture


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}, "rope_theta 10000, got 500000"),
        ({"rope_theta": 500000.0, "rope_parameters": None}, "rope_theta 10000, got 500000"),
        ({"rope_parameters": LLAMA3 | {"rope_theta": 10000.0}}, "rope_type 'default', got 'llama3'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None}, "'default', got 'linear'"),
        ({"hidden_act": "gelu"}, "hidden_act 'silu', got 'gelu'"),
        ({"num_attention_heads": 8, "head_dim": 8, "num_key_value_heads": 4}, "num_attention_heads 4, got 8"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps 1e-06, got 1e-05"),
        ({"attention_chunk_size": 8}, "attention_chunk_size None, got 8"),
        ({"model_type": "mistral"}, "model_type 'llama', got 'mistral'"),
    ],
)
def test_what_changes_the_forward_pass_is_refused_with_both_values(
    change: dict[str, Any], named: str, llama: Path, aligned: Path
) -> None:
    other = copy(llama, llama.parent / "other")
    edit(other / "config.json", lambda config: config.update(change))
    error = refused(other, aligned, ShapeMismatch, f"expected the family's .*{named}.* in file://")
    assert "fine-tune of the family" in error.remedy


def test_the_length_counts_where_the_rotary_embedding_reads_it(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}
    short = forward_values(resolved("llama", rope_parameters=dict(rope), max_position_embeddings=64))
    long = forward_values(resolved("llama", rope_parameters=dict(rope), max_position_embeddings=128))
    assert short != long
    kept = forward_values(resolved("llama", rope_parameters=LLAMA3 | {"rope_theta": 1e4}, max_position_embeddings=64))
    assert "max_position_embeddings" not in kept


def test_an_old_spelling_of_rope_scaling_is_no_difference() -> None:
    old = resolved("llama", rope_theta=500000.0, rope_scaling=dict(LLAMA3), max_position_embeddings=64)
    new = resolved("llama", rope_parameters=LLAMA3 | {"rope_theta": 500000.0}, max_position_embeddings=64)
    assert forward_values(old) == forward_values(new)
    other = resolved("llama", rope_parameters=LLAMA3 | {"rope_theta": 5e5, "factor": 4.0}, max_position_embeddings=64)
    assert forward_values(other) != forward_values(new)


def test_nested_configs_are_compared_too(tmp_path: Path) -> None:
    def values(**text: Any) -> dict[str, Any]:
        return forward_values(AutoConfig.for_model("gemma3", text_config={**SMALL, **text}, vision_config={}))

    assert values() == values(use_cache=False, vocab_size=WORDS)
    other = values(rope_theta=5.0)
    assert other != values()
    assert {key for key in other if other[key] != values()[key]} == {"text_config"}


@pytest.mark.parametrize("model_type", ["falcon_h1", "mamba2"])
def test_a_config_with_an_infinite_limit_is_read_as_it_was_saved(model_type: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(model_type)
    config.save_pretrained(tmp_path)
    values = forward_values(AutoConfig.from_pretrained(tmp_path))
    assert values == forward_values(config)
    canonical_json(values)


@pytest.mark.parametrize(
    "change", [{"hidden_size": "64"}, {"num_attention_heads": 0}, {"rope_parameters": {"rope_type": "x"}}]
)
def test_a_config_that_transformers_cannot_read_is_one_sentence(change: dict[str, Any], llama: Path) -> None:
    edit(llama / "config.json", lambda config: config.update(change))
    with pytest.raises(CheckpointError, match=r"expected a config that .* in file://.*config\.json") as raised:
        fetch(f"file://{llama}", out=llama.parent / "artefact")
    assert "config.json that belongs to these weights" in raised.value.remedy


# tensors


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: one.contiguous() for name, one in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


def test_a_stored_copy_under_a_tie_and_a_recomputed_buffer_are_no_difference(llama: Path, aligned: Path) -> None:
    other = copy(llama, llama.parent / "other")

    def more(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)

    change_weights(other, more)
    record, family = read_record(target(other, aligned)), read_record(aligned)
    assert record.tensors == family.tensors
    assert record.parameters == family.parameters
    assert digest_of(other) == family.architecture


def test_another_head_stored_under_a_tie_is_refused_by_name(llama: Path, aligned: Path) -> None:
    other = copy(llama, llama.parent / "other")
    change_weights(other, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1e-3}))
    named = r"lm_head\.weight to equal model\.embed_tokens\.weight, since tie_word_embeddings is true"
    refused(other, aligned, CheckpointError, named)
    edit(other / "config.json", lambda config: config.update(tie_word_embeddings=False))
    refused(other, aligned, ShapeMismatch, "tie_word_embeddings True, got False")


def test_a_missing_an_extra_and_a_misshapen_tensor_are_named(llama: Path, aligned: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    ours = architecture(open_checkpoint(llama), "there")
    family = read_record(aligned)
    require_same_architecture(ours, (family.config, family.tensors), "there")
    fewer = {key: shape for key, shape in family.tensors.items() if key != name}
    with pytest.raises(ShapeMismatch, match=f"got also {name}, in there"):
        require_same_architecture(ours, (family.config, fewer), "there")
    with pytest.raises(TensorMissing, match="the tensor more of the family, got none, in there"):
        require_same_architecture(ours, (family.config, family.tensors | {"more": (1,)}), "there")
    with pytest.raises(ShapeMismatch, match=rf"shape \[64, 32\] of {name}, got \[64, 64\], in there"):
        require_same_architecture(ours, (family.config, family.tensors | {name: (64, 32)}), "there")


def test_a_record_of_an_earlier_version_is_read_and_the_family_compared_by_its_files(
    llama: Path, aligned: Path
) -> None:
    record = read_record(aligned)
    old = record.model_copy(update={"config": {"model_type": "llama", "num_hidden_layers": 2, "head_dim": None}})
    (aligned / "checkpoint.json").write_bytes(old.content)
    (aligned / "structure.json").unlink()
    manifest = json.loads((aligned / "manifest.json").read_text())
    from safegene.workspace.digest import digest_file

    manifest["files"] = {"checkpoint.json": digest_file(aligned / "checkpoint.json")}
    (aligned / "manifest.json").write_bytes(canonical_json(manifest) + b"\n")
    other = copy(llama, llama.parent / "other")
    assert read_record(target(other, aligned)).tensors == record.tensors
    edit(other / "config.json", lambda config: config.update(rope_theta=5.0, rope_parameters=None))
    refused(copy(other, llama.parent / "third"), aligned, ShapeMismatch, "rope_theta 10000, got 5")


# vocabularies


def grow(folder: Path, tokens: list[dict[str, Any]], rows: int) -> Path:
    """Add tokens to the tokenizer of a folder and rows to its embedding, as `resize_token_embeddings` does."""
    edit(folder / "tokenizer.json", lambda t: t.update(added_tokens=tokens))

    def resize(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(("embed_tokens.weight", "lm_head.weight"))]:
            old = tensors[name]
            tensors[name] = torch.cat([old, torch.full((max(0, rows - len(old)), old.shape[1]), 0.5)])[:rows]

    change_weights(folder, resize)
    edit(folder / "config.json", lambda config: config.update(vocab_size=rows))
    return folder


def token(number: int, content: str, *, special: bool = True) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": special, **flags}


CHATML = [token(50, "<|im_start|>"), token(51, "<|im_end|>")]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [52, 64])
def test_a_vocabulary_that_grew_is_accepted_and_said(
    tied: bool, rows: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    llama = save_llama(tmp_path / "llama", tied=tied)
    fetch(f"file://{llama}", out=tmp_path / "aligned")
    other = grow(copy(llama, tmp_path / "other"), CHATML, rows)
    with caplog.at_level("INFO", logger="safegene"):
        record = read_record(target(other, tmp_path / "aligned"))
    assert record.added_tokens == ("<|im_start|>", "<|im_end|>")
    assert record.tensors["model.embed_tokens.weight"] == (rows, 64)
    assert digest_of(other) == read_record(tmp_path / "aligned").architecture
    assert "2 tokens added to the family's vocabulary: '<|im_start|>', '<|im_end|>'" in caplog.text


@pytest.mark.parametrize("rows", [64, 51])
def test_padding_rows_may_be_added_or_trimmed(rows: int, tmp_path: Path) -> None:
    llama = save_llama(tmp_path / "llama")
    padded = grow(copy(llama, tmp_path / "padded"), [], 56)
    fetch(f"file://{padded}", out=tmp_path / "aligned")
    other = grow(copy(llama, tmp_path / "other"), [], rows)
    record = read_record(target(other, tmp_path / "aligned"))
    assert record.added_tokens == ()
    assert record.tensors["model.embed_tokens.weight"] == (rows, 64)


def test_rows_that_the_tokens_need_are_not_trimmed(llama: Path, aligned: Path) -> None:
    other = grow(copy(llama, llama.parent / "other"), CHATML, 51)
    refused(other, aligned, ShapeMismatch, r"shape \[50, 64\] of model.embed_tokens.weight for 52 tokens, got \[51,")


OTHER_WORDS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another id": (lambda t: t["model"]["vocab"].update(w7=8, w8=7), "id 7 of 'w7', got 8"),
    "a dropped token": (lambda t: t["model"]["vocab"].pop("w7"), "id 7 of 'w7', got None"),
    "a special word": (lambda t: t.update(added_tokens=[token(50, " harm")]), "begin and end with a sign"),
    "other merges": (lambda t: t["model"].update(merges=["w 7"]), "other merges"),
}


@pytest.mark.parametrize("case", OTHER_WORDS)
def test_another_vocabulary_is_refused_with_a_remedy_that_keeps_its_tokens(
    case: str, llama: Path, aligned: Path
) -> None:
    change, match = OTHER_WORDS[case]
    other = copy(llama, llama.parent / "other")
    edit(other / "tokenizer.json", change)
    error = refused(other, aligned, ShapeMismatch, match)
    assert "special" in error.remedy or "add new ones after them" in error.remedy


def test_a_word_that_is_added_without_being_special_is_accepted(llama: Path, aligned: Path) -> None:
    other = grow(copy(llama, llama.parent / "other"), [token(50, "covid", special=False)], 51)
    assert read_record(target(other, aligned)).added_tokens == ("covid",)


def test_an_adapter_may_add_tokens_where_the_family_has_rows_for_them(tmp_path: Path) -> None:
    llama = save_llama(tmp_path / "llama")
    padded = grow(copy(llama, tmp_path / "padded"), [], 51)
    fetch(f"file://{padded}", out=tmp_path / "aligned")
    lora = save_adapter(tmp_path / "lora", padded)
    for name, tokens in (("one", CHATML[:1]), ("two", CHATML)):
        folder = copy(lora, tmp_path / name)
        (folder / "tokenizer.json").write_bytes((llama / "tokenizer.json").read_bytes())
        edit(folder / "tokenizer.json", lambda t, tokens=tokens: t.update(added_tokens=tokens))  # type: ignore[misc]
    assert read_record(target(tmp_path / "one", tmp_path / "aligned")).added_tokens == ("<|im_start|>",)
    error = refused(tmp_path / "two", tmp_path / "aligned", ShapeMismatch, "51 rows of the family's embedding, got 52")
    assert "merge the adapter into its base where it was trained" in error.remedy


def test_the_artefact_of_a_target_holds_its_structure(llama: Path, aligned: Path) -> None:
    assert read_structure(target(copy(llama, llama.parent / "other"), aligned)) == read_structure(aligned)


def test_a_malformed_vocabulary_is_refused(llama: Path, aligned: Path) -> None:
    other = copy(llama, llama.parent / "other")
    edit(other / "tokenizer.json", lambda t: t["model"]["vocab"].update(w7="x"))
    refused(other, aligned, FormatError, "merges and added tokens of a tokenizer")
