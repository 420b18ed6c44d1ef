"""Checkpoints saved with a vision tower: the language model is found, compared and repaired; the rest is left alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from safegene.checkpoints.record import read_record
from safegene.checkpoints.structure import read_structure
from safegene.errors import CheckpointError, ShapeMismatch
from safegene.pipeline.stages.fetch import fetch
from safegene.workspace.params import FetchParams
from tests.factories.hostile import edit
from tests.factories.llamas import CHAT_TEMPLATE, WORDS, copy

TEXT = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
TOKENS = {"image_token_index": 40, "boi_token_index": 41, "eoi_token_index": 42}
PROJECTED = {"projector_input_dim": 16, "projector_output_dim": 16, "vision_output_dim": 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": TEXT, "vision_config": VISION, "mm_tokens_per_image": 4, **TOKENS},
    "mistral3": {
        "text_config": {"model_type": "mistral", **TEXT},
        "vision_config": {"model_type": "pixtral", "head_dim": 8, **VISION},
        "image_token_index": 40,
    },
    "llama4": {
        "text_config": {"intermediate_size_mlp": 48, "num_local_experts": 2, "interleave_moe_layer_step": 2, **TEXT},
        "vision_config": VISION | PROJECTED,
        **TOKENS,
    },
}
LIMITS = FetchParams(model_types=tuple(CONFIGS))
PREFIX = "language_model.model."


@pytest.fixture(autouse=True)
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))


def save(folder: Path, model_type: str) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, **CONFIGS[model_type])
        AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    words = {f"w{i}": i for i in range(WORDS)}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "w0"}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


@pytest.mark.parametrize("model_type", CONFIGS)
def test_the_language_model_of_a_multimodal_checkpoint_is_compared(model_type: str, tmp_path: Path) -> None:
    folder, aligned = save(tmp_path / "model", model_type), tmp_path / "aligned"
    fetch(f"file://{folder}", out=aligned, params=LIMITS)
    structure = read_structure(aligned)
    assert len(structure.layers) >= 11
    assert all(name.startswith(PREFIX) for name in structure.matrices)
    assert all(kind == "vision" for name, kind in structure.others.items() if "language_model" not in name)
    assert "vision" in structure.others.values()
    assert read_record(aligned).config["text_config"]["num_attention_heads"] == 4

    other = copy(folder, tmp_path / "other")
    edit(other / "config.json", lambda config: config["text_config"].pop("use_cache", None))
    edit(other / "config.json", lambda config: config["text_config"].update(attention_dropout=0.1))
    fetch(f"file://{other}", out=tmp_path / "target", family=aligned, params=LIMITS)
    assert read_record(tmp_path / "target").config == read_record(aligned).config

    edit(other / "config.json", lambda config: config["text_config"].pop("rope_parameters"))
    edit(other / "config.json", lambda config: config["text_config"].update(rope_theta=77.0))
    with pytest.raises(ShapeMismatch, match=r"text_config\.rope_parameters\..*rope_theta \d+, got 77, in file://"):
        fetch(f"file://{other}", out=tmp_path / "again", family=aligned, params=LIMITS)


@pytest.mark.parametrize("model_type", ["gemma3", "llama4"])
def test_a_vocabulary_grows_and_a_head_is_tied_under_a_prefix_too(model_type: str, tmp_path: Path) -> None:
    folder, aligned = save(tmp_path / "model", model_type), tmp_path / "aligned"
    fetch(f"file://{folder}", out=aligned, params=LIMITS)
    weights = load_file(folder / "model.safetensors")
    vocabulary = [name for name in (f"{PREFIX}embed_tokens.weight", "language_model.lm_head.weight") if name in weights]
    assert len(vocabulary) == (1 if model_type == "gemma3" else 2)

    grown = copy(folder, tmp_path / "grown")
    more = {name: torch.cat([weights[name], torch.zeros(3, 32)]) for name in vocabulary}
    save_file(weights | more, grown / "model.safetensors", metadata={"format": "pt"})
    edit(grown / "config.json", lambda config: config["text_config"].update(vocab_size=WORDS + 3))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    new = {"id": 50, "content": "<|end|>", "special": True, **flags}
    edit(grown / "tokenizer.json", lambda t: t.update(added_tokens=[new]))
    fetch(f"file://{grown}", out=tmp_path / "target", family=aligned, params=LIMITS)
    assert read_record(tmp_path / "target").added_tokens == ("<|end|>",)

    if model_type == "gemma3":
        head = {"language_model.lm_head.weight": weights[vocabulary[0]] + 1}
        untied = copy(folder, tmp_path / "untied")
        save_file(weights | head, untied / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(
            CheckpointError, match=r"language_model\.lm_head\.weight to equal language_model\.model\.emb"
        ):
            fetch(f"file://{untied}", out=tmp_path / "again", family=aligned, params=LIMITS)
