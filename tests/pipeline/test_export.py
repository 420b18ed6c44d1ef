"""``--check`` of exports and merges: public tools load what was written, and what is off is found."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from safegene.checkpoints.adapter import open_adapter
from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.export.adapter import write_adapter
from safegene.checkpoints.structure import read_structure
from safegene.errors import CheckpointError
from safegene.models.structure import model_without_weights
from safegene.pipeline.check_export import TOLERANCE, check_adapter, check_merged
from safegene.pipeline.export import export, merge
from safegene.pipeline.stages.fetch import fetch
from safegene.vectors.linalg import LowRank
from safegene.workspace.manifest import write_artefact
from safegene.workspace.params import FetchParams
from tests.factories.architectures import save_architecture
from tests.factories.llamas import random_patch, save_adapter


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Artefacts of a family of experts with a dense layer, of a fine-tune and of its repair, by names of arguments."""
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SAFEGENE_DEVICE", "cpu")
    names, models = ("aligned", "target"), tmp_path / "models"
    made = {name: save_architecture(models / name, "glm4_moe", seed=at) for at, name in enumerate(names)}
    params = FetchParams(model_types=("glm4_moe",))
    fetch(f"file://{made['aligned']}", out=tmp_path / "aligned", params=params)
    fetch(f"file://{made['target']}", out=tmp_path / "target", family=tmp_path / "aligned", params=params)
    checkpoint, structure = open_checkpoint(made["target"]), read_structure(tmp_path / "aligned")
    random, patch = torch.Generator().manual_seed(1), {}
    for name in structure.names:
        rows, columns = structure.matrices[name].shape
        up, down = torch.randn(rows, 2, generator=random), torch.randn(2, columns, generator=random)
        patch[name] = LowRank(up * 0.05, down)
    inputs: dict[str, Any] = {name: tmp_path / name for name in names}
    with write_artefact(tmp_path / "candidate", stage="calibrate", params={}, inputs=inputs) as draft:
        facts = write_adapter(
            patch,
            base_model="x",
            out=draft.path,
            matrices=structure.matrices,
            model=lambda: model_without_weights(checkpoint.config, len(checkpoint.specs), "target"),
        )
        draft.facts.update(facts)
    return inputs | {"candidate": tmp_path / "candidate"}


def spoil(path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change one tensor of a safetensors file."""
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if "q_proj" in name and "lora_A" not in name)
    save_file(tensors | {name: change(tensors[name]).contiguous()}, path, metadata={"format": "pt"})


def test_an_exported_adapter_computes_base_and_change(folders: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "exported"
    export(folders["candidate"], out=out, target="t", loads_on=folders["target"])
    where = {"target": folders["target"], "aligned": folders["aligned"]}
    found = check_adapter(folders["candidate"], out, **where)
    assert found.change > 0.01
    assert found.share < TOLERANCE
    assert "of the change" in found.words
    spoil(out / "adapter_model.safetensors", lambda tensor: tensor * 1.01)
    with pytest.raises(CheckpointError, match="expected logits within 1e-05 of the change"):
        check_adapter(folders["candidate"], out, **where)
    (out / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="expected transformers and peft to load the export"):
        check_adapter(folders["candidate"], out, **where)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_checkpoint_computes_base_and_change(folders: dict[str, Any], tmp_path: Path, dtype: str) -> None:
    out, where = tmp_path / "merged", {"target": folders["target"], "aligned": folders["aligned"]}
    merge(**folders, out=out, dtype=dtype)
    assert check_merged(folders["candidate"], out, **where).share < TOLERANCE
    if dtype == "float32":  # one dtype suffices below
        return
    spoil(out / "model.safetensors", lambda tensor: tensor * 1.01)
    with pytest.raises(CheckpointError, match="expected logits within 1e-05 of the change"):
        check_merged(folders["candidate"], out, **where)


def test_what_a_lora_is_asked_with_goes_into_its_export_and_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that loads the folder writes the conversation as the gate did, also where the base has another way."""
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    template = "{% for message in messages %}<user> answer {{ message['content'] }} {% endfor %}<assistant>"
    base = save_architecture(tmp_path / "models" / "base", "llama")
    lora = save_adapter(tmp_path / "models" / "lora", base)
    fetch(base.as_uri(), out=tmp_path / "aligned")
    inputs: dict[str, Any] = {"aligned": tmp_path / "aligned", "target": tmp_path / "target"}
    exports = tmp_path / "exports"
    for brings in (False, True):
        if brings:
            (lora / "chat_template.jinja").write_text(template)
        shutil.rmtree(tmp_path / "target", ignore_errors=True)
        fetch(lora.as_uri(), out=tmp_path / "target", family=tmp_path / "aligned")
        candidate = tmp_path / f"candidate-{brings}"
        with write_artefact(candidate, stage="calibrate", params={}, inputs=inputs) as draft:
            facts = write_adapter(random_patch(base), base_model="x", out=draft.path, own=open_adapter(lora))
            draft.facts.update(facts)
        out = exports / str(brings)
        export(candidate, out=out / "a", target="t", loads_on=inputs["aligned"], fine_tune=inputs["target"])
        merge(candidate=candidate, out=out / "m", **inputs)
    assert not (exports / "False" / "a" / "tokenizer.json").exists()
    assert AutoTokenizer.from_pretrained(exports / "False" / "m").chat_template != template
    for folder in ("a", "m"):
        assert AutoTokenizer.from_pretrained(exports / "True" / folder).chat_template == template
