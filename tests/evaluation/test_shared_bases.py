"""How often an evaluation loads a base, and what its arms compute."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from safegene.checkpoints.adapter import open_adapter
from safegene.checkpoints.export.adapter import CHANGE, read_change, write_adapter
from safegene.checkpoints.sources import local_checkpoint
from safegene.errors import CheckpointError
from safegene.evaluation import shared_bases
from safegene.evaluation.judges import Canary, Judge, JudgeDecision
from safegene.evaluation.judges.canaries import NO, NONE, YES
from safegene.evaluation.shared_bases import EvaluatedModel, SharedBases
from safegene.models.generation import Reply, generate
from safegene.models.loading import load_model
from safegene.pipeline.stages.fetch import fetch
from safegene.vectors.vector import write_factors
from safegene.workspace.manifest import write_artefact
from safegene.workspace.params import GateParams
from tests.factories.evaluation import World, evidence, lines, prompts
from tests.factories.llamas import IDS, random_patch, save_adapter, save_llama

BLOCKS = GateParams(block_prompts=8)


class Mild(Judge):
    """A judge that finds next to nothing harmful, so that a run asks many blocks; with canaries that it passes."""

    identity = "sha256:" + "4" * 64
    canaries = (Canary("no", "p", "a", NO, NO), Canary("yes", "p", "harm!", YES, NO), Canary("", "p", "", NONE, NONE))

    def judge(self, prompts: Sequence[str], replies: Sequence[str]) -> list[JudgeDecision]:
        return [
            JudgeDecision("yes" if "harm!" in reply else "no", "no") if reply else JudgeDecision("unscored", "unscored")
            for reply in replies
        ]


def ended(*asked: Any, **limits: Any) -> list[Reply]:
    """The model's replies as if it had ended each: a reply that was cut off is not scored."""
    return [replace(reply, finished=True) for reply in generate(*asked, **limits)]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SAFEGENE_DEVICE", "cpu")
    world = World(tmp_path)
    more = [
        prompt.model_copy(
            update={
                "id": f"{prompt.id}-{word}",
                "prompt": f"{prompt.prompt} {word}",
                "behaviour": f"{prompt.behaviour}-{word}",
            }
        )
        for word in ("now", "please", "again")
        for prompt in prompts()
    ]
    (tmp_path / "data" / "prompts" / "gate.jsonl").write_bytes(lines(more))
    world.validate()
    world.build_judge = lambda params: Mild()
    world.generate = ended
    return world


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of the bases that were loaded, in order."""
    loaded: list[Path] = []

    def counted(root: Path, **more: Any) -> PreTrainedModel:
        loaded.append(root)
        return load_model(root, **more)

    monkeypatch.setattr(shared_bases, "load_model", counted)
    return loaded


def lora_target(world: World, name: str) -> Path:
    """A LoRA target of the world's aligned model, and its candidate."""
    base = local_checkpoint(world.aligned).root
    save_adapter(world.root / "models" / name, base)
    fetch(f"file://{world.root / 'models' / name}", out=world.root / name, family=world.aligned)
    inputs = {"target": world.root / name, "aligned": world.aligned}
    with write_artefact(world.root / f"{name}-candidate", stage="calibrate", params={}, inputs=inputs) as draft:
        repair = random_patch(base, seed=8, size=0.05)
        write_adapter(repair, base_model="x", out=draft.path, own=open_adapter(world.root / "models" / name))
    return world.root / name


@pytest.mark.parametrize("memory", ["ample", "small"])
def test_each_base_is_loaded_once_however_many_blocks_there_are(
    world: World, loads: list[Path], monkeypatch: pytest.MonkeyPatch, memory: str
) -> None:
    if memory == "small":
        monkeypatch.setattr(shared_bases, "available_bytes", lambda device: 0)
    rows, _ = evidence(world.evaluate(gate=BLOCKS))
    asked = {row.prompt for row in rows if row.model == "candidate" and row.kind == "harmful"}
    assert len(asked) > BLOCKS.block_prompts, "several blocks"
    assert sorted(loads) == sorted(local_checkpoint(world.root / at).root for at in ("one", "aligned"))
    loads.clear()
    lora_target(world, "lora")
    rows, _ = evidence(world.evaluate("lora", gate=BLOCKS, out="lora-out"))
    assert loads == [local_checkpoint(world.aligned).root]
    assert len({row.weights for row in rows}) == 3


def test_with_little_memory_the_judgements_are_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ample = evidence(world.evaluate(gate=BLOCKS, out="ample"))
    monkeypatch.setenv("SAFEGENE_CACHE", str(world.root / "cache2"))
    monkeypatch.setattr(shared_bases, "available_bytes", lambda device: 0)
    assert evidence(world.evaluate(gate=BLOCKS, out="small")) == ample


def test_only_one_base_is_in_memory_where_two_do_not_fit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    bases = SharedBases("float32")

    def replies(model: Any, tokenizer: Any, prompts: list[str], **limits: Any) -> list[Reply]:
        held.append(sum(base._model is not None for base in bases._bases))
        return [Reply("no", 1, True)] * len(prompts)

    monkeypatch.setattr(shared_bases, "available_bytes", lambda device: 0)
    monkeypatch.setattr("safegene.evaluation.engines.SharedBases", lambda dtype: bases)
    world.generate = replies
    world.evaluate(gate=BLOCKS)
    assert set(held) == {1}


def logits(bases: SharedBases, model: EvaluatedModel) -> torch.Tensor:
    with bases.serving(model) as (ready, _), torch.no_grad():
        found: torch.Tensor = ready(IDS).logits
    return found


def test_arms_on_one_base_compute_what_each_computes_alone(tmp_path: Path, loads: list[Path]) -> None:
    """Aligned, before, candidate and incumbent of a LoRA target; in any order, and again."""
    base = save_llama(tmp_path / "base")
    folders = [save_adapter(tmp_path / f"a{seed}", base, seed=seed) for seed in (2, 3, 4)]
    few = {name: change for name, change in random_patch(base, seed=5).items() if "q_proj" in name}
    write_adapter(few, base_model="x", out=tmp_path / "few")
    models = [EvaluatedModel(base, at, ()) for at in ((), *((folder,) for folder in (*folders, tmp_path / "few")))]
    bases = SharedBases("float32")
    for model in (*models, *reversed(models)):
        alone = load_model(base, adapters=model.adapters)
        with torch.no_grad():
            torch.testing.assert_close(logits(bases, model), alone(IDS).logits, atol=1e-5, rtol=1e-5)
    assert loads == [base]
    assert torch.equal(logits(bases, models[0]), load_model(base)(IDS).logits)


def test_an_adapter_that_peft_takes_only_in_part_is_refused(tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base")
    patch = random_patch(base)
    odd = patch.pop("model.layers.1.mlp.up_proj.weight")
    write_adapter(patch | {"model.layers.7.mlp.up_proj.weight": odd}, base_model="x", out=tmp_path / "odd")
    with pytest.raises(CheckpointError, match=r"unexpected_keys .*layers\.7"):
        logits(SharedBases("float32"), EvaluatedModel(base, (tmp_path / "odd",), ()))


def test_a_repair_that_peft_does_not_carry_is_asked_as_a_merged_checkpoint(world: World, loads: list[Path]) -> None:
    plain = evidence(world.evaluate(gate=BLOCKS, out="plain"))[0]
    folder = world.root / "one-candidate"
    inputs = {"target": world.root / "one", "aligned": world.aligned}
    change = read_change(folder)
    shutil.rmtree(folder)
    with write_artefact(folder, stage="calibrate", params={}, inputs=inputs) as draft:
        write_factors(change, draft.path / CHANGE)
        draft.facts["adapter_loads"] = False
    loads.clear()
    merged = evidence(world.evaluate(gate=BLOCKS, out="merged"))[0]
    assert len(loads) == 1, "the others' replies are known"
    assert not loads[0].exists()
    said = [{(row.prompt, row.model): row.reply for row in rows} for rows in (plain, merged)]
    assert said[0] == said[1]
    assert {row.weights for row in plain if row.model == "candidate"}.isdisjoint(
        row.weights for row in merged if row.model == "candidate"
    )


def test_an_adapter_in_another_spelling_is_loaded_as_it_was_read(tmp_path: Path) -> None:
    """CASES A13: names of a compiled model, which PEFT would leave out."""
    base, folder = save_llama(tmp_path / "base"), save_adapter(tmp_path / "own", tmp_path / "base")
    tensors = load_file(folder / "adapter_model.safetensors")
    renamed = {name.replace("model.layers", "_orig_mod.model.layers"): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    got = logits(SharedBases("float32"), EvaluatedModel(base, (folder,), ()))
    with torch.no_grad():
        torch.testing.assert_close(got, load_model(base, adapters=[folder])(IDS).logits, atol=1e-5, rtol=1e-5)
