"""Architectures whose adapters PEFT builds and does not compute."""

from pathlib import Path

import pytest
import torch

from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.export.adapter import CHANGE, read_change, serving_words, withdraw_adapter, write_adapter
from safegene.evaluation.adapter_trial import adapter_fault
from safegene.models.structure import analyse, model_without_weights
from safegene.vectors.linalg import LowRank
from tests.factories.architectures import save_architecture

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.mark.parametrize(
    ("model_type", "fault"),
    [
        ("qwen3_moe", ""),
        ("phimoe", ""),
        ("zamba2", "logits are off by"),  # blocks share weights, and PEFT adapts one of them
    ],
)
def test_a_trial_finds_what_peft_does_not_compute(model_type: str, fault: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save_architecture(tmp_path / "base", model_type))
    matrices, random = analyse(checkpoint).matrices, torch.Generator().manual_seed(1)
    patch = {
        name: LowRank(
            torch.randn(matrix.shape[0], 2, generator=random) * 0.05, torch.randn(2, matrix.shape[1], generator=random)
        )
        for name, matrix in matrices.items()
    }
    facts = write_adapter(
        patch,
        base_model="x",
        out=tmp_path / "a",
        matrices=matrices,
        model=lambda: model_without_weights(checkpoint.config, len(checkpoint.specs), "base"),
    )
    assert facts["adapter_loads"]
    found = adapter_fault(checkpoint.root, tmp_path / "a")
    assert fault in found
    assert bool(found) == bool(fault)
    facts = withdraw_adapter(tmp_path / "a", facts, found)
    assert not facts["adapter_loads"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == [CHANGE]
    assert read_change(tmp_path / "a").keys() == patch.keys()
    assert "serve the merged checkpoint" in serving_words(facts)


def test_what_the_memory_does_not_hold_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = save_architecture(tmp_path / "base", "qwen3_moe")
    monkeypatch.setattr("safegene.evaluation.adapter_trial.free_memory", lambda: 1 << 10)
    assert "could not be tried" in adapter_fault(root, tmp_path / "a")
