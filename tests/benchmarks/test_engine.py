"""The engine's benchmarks run at toy size on a CPU, and state what they measured."""

import json
from pathlib import Path

import pytest

from benchmarks.engine import gpu, memory
from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.models.loading import load_model, load_tokenizer

TINY = {**memory.SMALL, "vocab_size": 64, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 5}


def test_the_gpu_script_runs_at_toy_size_and_writes_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFEGENE_DEVICE", "cpu")
    gpu.main(["--toy", str(tmp_path)])
    figures = {one["name"]: one["value"] for one in json.loads((tmp_path / "gpu.json").read_text())}
    assert figures["memory bandwidth, by a copy"] > 0
    assert 0 < figures["extraction: largest relative error"] < 1
    assert figures["calibration: seconds a step"] > 0
    assert figures["generation: tokens a second"] > 0


def test_the_gpu_script_needs_a_gpu_at_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEGENE_DEVICE", "cpu")
    with pytest.raises(SystemExit, match="--toy"):
        gpu.main([])


def test_the_memory_benchmark_predicts_every_stage_that_it_runs(tmp_path: Path) -> None:
    memory.build(tmp_path, TINY)
    assert open_checkpoint(tmp_path).parameters == load_model(tmp_path).num_parameters()
    assert len(load_tokenizer(tmp_path)) < TINY["vocab_size"]
    assert len(set(memory.prompts(12))) == 12
    assert set(memory.STAGES) <= set(memory.predicted(tmp_path))
    for run in memory.STAGES.values():
        run(tmp_path)


def test_the_table_of_a_70b_says_what_does_not_fit() -> None:
    lines = memory.seventy_billion().splitlines()
    assert lines[0].startswith("A model of 70.6 billion parameters in bf16 (141 GB)")
    row = next(line for line in lines if line.startswith("| calibrate"))
    one, two, four, eight = (cell.strip() for cell in row.split("|")[2:-1])
    assert "(" in one
    assert "(" not in four + eight
    assert int(four) > int(eight)
    assert two
