"""Peak memory from names and shapes: the same for a header and for the loaded model, and monotone where it must be."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.models import memory
from safegene.models.loading import load_model
from safegene.models.memory import (
    PROCESS,
    STREAM,
    Microbatches,
    ModelSize,
    microbatches,
    placements,
    row_bytes,
    size_of_checkpoint,
    size_of_model,
    size_of_shapes,
    stage_peak_bytes,
)
from tests.factories.llamas import save_llama

SIZE = ModelSize(
    weights=2 * 10**9,
    parameters=10**9,
    largest=10**8,
    layers=20,
    hidden=1024,
    width=20_000,
    heads=16,
    keys=512,
    vocabulary=100_000,
    itemsize=2,
)


def test_a_header_and_the_loaded_model_have_the_same_size(tmp_path: Path) -> None:
    root = save_llama(tmp_path)
    size = size_of_checkpoint(open_checkpoint(root))
    model = load_model(root)
    assert size == size_of_model(model)
    assert size.weights == 4 * sum(weight.numel() for weight in model.parameters())
    attention, mlp = (64 + 64) + 2 * (64 + 32) + (64 + 64), 3 * (64 + 96)
    assert size.width == attention + mlp
    assert (size.layers, size.hidden, size.heads, size.keys, size.vocabulary) == (2, 64, 4, 64, 50)
    half = size_of_checkpoint(open_checkpoint(root), "bfloat16")
    assert half.weights * 2 == size.weights
    assert half.itemsize == 2


def test_of_several_experts_only_those_that_a_token_passes_are_counted() -> None:
    config = LlamaConfig(num_experts_per_tok=2)
    shapes = {f"model.layers.0.mlp.experts.{at}.up_proj.weight": (8, 16) for at in range(64)}
    assert size_of_shapes(config, shapes, 2).width == 2 * (8 + 16)
    assert size_of_shapes(config, {"model.layers.0.mlp.experts.up_proj": (64, 8, 16)}, 2).width == 2 * (8 + 16)


def test_checkpointing_takes_less_and_a_gradient_more() -> None:
    forward = row_bytes(SIZE, 100, 8, gradient=False)
    both = row_bytes(SIZE, 100, 8, gradient=True)
    assert forward < row_bytes(SIZE, 100, 8, gradient=True, checkpointed=True) < both / 2
    assert row_bytes(SIZE, 100, 16, gradient=False) - forward == 8 * 100_000 * (2 + 8)


def test_microbatches_fit_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(save_llama(tmp_path))
    assert microbatches(model, 12, 40, 8) == Microbatches(12, checkpointed=False)
    one = row_bytes(size_of_model(model), 40, 8, gradient=True, checkpointed=True)
    for rows in (1, 3):
        monkeypatch.setattr(memory, "device_bytes", lambda _, n=rows: int(one * (n + 0.5) / memory.MICROBATCH_SHARE))
        assert microbatches(model, 12, 40, 8) == Microbatches(rows, checkpointed=True)
    monkeypatch.setattr(memory, "device_bytes", lambda _: 1)
    assert microbatches(model, 12, 40, 8).rows == 1
    assert not microbatches(model, 12, 40, 8, gradient=False).checkpointed


def test_stages_that_stream_do_not_grow_with_the_model_and_those_that_load_do() -> None:
    peaks, deeper = stage_peak_bytes(SIZE), stage_peak_bytes(replace(SIZE, weights=2 * SIZE.weights))
    for stage in ("fetch", "extract", "merge", "compress"):
        assert peaks[stage] == deeper[stage]
    for stage in ("degrade", "select", "calibrate", "evaluate"):
        assert deeper[stage] - peaks[stage] == SIZE.weights
    assert peaks["extract"] == STREAM + 8 * SIZE.largest
    assert stage_peak_bytes(SIZE, bases=2)["evaluate"] - peaks["evaluate"] == SIZE.weights
    assert stage_peak_bytes(SIZE, budget=10**8)["calibrate"] < stage_peak_bytes(SIZE, budget=10**10)["calibrate"]


def test_what_the_gpus_do_not_hold_is_offloaded() -> None:
    peak, gpu = PROCESS + SIZE.weights + 10**8, int(1.2e9 / memory.GPU_SHARE)
    one, two = placements(SIZE, peak, (1, 2), gpu)
    assert one.offloaded == SIZE.weights - int(memory.GPU_SHARE * gpu) + 10**8
    assert two.offloaded == 0
    assert two.per_gpu == SIZE.weights // 2 + 10**8
    assert one.per_gpu <= memory.GPU_SHARE * gpu


def test_the_device_has_memory() -> None:
    assert memory.device_bytes(torch.device("cpu")) > 1 << 28
