"""Adapters that are not plain LoRA are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from safegene.checkpoints.adapter import open_adapter
from safegene.errors import CheckpointError, FormatError, ShapeMismatch, TensorMissing, UnsafeCheckpoint
from tests.factories.hostile import edit, refused

NAME = "model.layers.0.self_attn.q_proj.weight"


ADAPTERS: dict[str, tuple[dict[str, Any], str]] = {
    "another method": ({"peft_type": "IA3"}, "peft_type 'LORA', got 'IA3'"),
    "DoRA": ({"use_dora": True}, "use_dora"),
    "biases": ({"bias": "all"}, "bias 'none'"),
    "lora biases": ({"lora_bias": True}, "lora_bias"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
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


def test_an_adapter_that_is_a_pickle(lora: Path) -> None:
    (lora / "adapter_model.bin").write_bytes(b"never")
    assert open_adapter(lora).modules, "a pickle beside the weights is ignored"
    (lora / "adapter_model.safetensors").unlink()
    refused(lora, UnsafeCheckpoint, "adapter_model.bin")
    with pytest.raises(UnsafeCheckpoint):
        open_adapter(lora)
