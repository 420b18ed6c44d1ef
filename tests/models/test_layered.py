"""A model whose layers are read from disk at each forward pass: same logits, and one layer in memory at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.export.adapter import write_adapter
from safegene.errors import TensorMissing
from safegene.models.forward import next_token_log_probs
from safegene.models.generation import generate
from safegene.models.layered import layered_model
from safegene.models.loading import load_model, load_tokenizer
from safegene.models.structure import analyse
from safegene.tiny.build import build
from safegene.vectors.linalg import LowRank
from safegene.vectors.vector import write_factors
from tests.factories.llamas import IDS, random_patch, save_llama

ROWS = [[5, 6, 7, 8, 9, 10], [11, 12, 13]]
COMMON: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gemma3_text": {"head_dim": 8},
    "mixtral": EXPERTS,
    "qwen3_moe": EXPERTS | {"head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4},
    "mamba": {},
    "lfm2": {},
    "phi3": {},
}


def saved(folder: Path, kind: str) -> Path:
    """A random bf16 model of that architecture, in several shards."""
    unknown = {"gpt2": {"num_key_value_heads", "intermediate_size", "hidden_size"}}.get(kind, set())
    values = {name: value for name, value in COMMON.items() if name not in unknown} | ARCHITECTURES[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **values)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder, max_shard_size="20KB")
    return folder


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_law_its_log_probabilities_are_those_of_the_loaded_model(kind: str, tmp_path: Path) -> None:
    root = saved(tmp_path, kind)
    whole = AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32).eval()
    layered = layered_model(root)
    for _ in range(2):  # the layers are read again for each pass
        with torch.no_grad():
            expected, got = (next_token_log_probs(model, ROWS, 3) for model in (whole, layered))
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_an_adapter_is_added_to_the_layers(tmp_path: Path) -> None:
    root = save_llama(tmp_path / "base")
    write_adapter(random_patch(root), base_model="base", out=tmp_path / "adapter")
    layered = layered_model(root, (tmp_path / "adapter",))
    with torch.no_grad():
        expected = load_model(root, adapters=(tmp_path / "adapter",))(input_ids=IDS).logits
        base = load_model(root, dtype="float32")(input_ids=IDS).logits
        got = layered(input_ids=IDS).logits
    assert (expected - base).abs().max() > 0.1
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_the_change_of_an_expert_is_added_to_the_merged_parameter(tmp_path: Path) -> None:
    root = saved(tmp_path / "moe", "qwen3_moe")
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    patch = {name: LowRank(torch.ones(24, 1), torch.ones(1, 32))}
    assert name in analyse(open_checkpoint(root)).matrices
    (tmp_path / "change").mkdir()
    write_factors(patch, tmp_path / "change" / "change.safetensors")
    with torch.no_grad():
        expected = next_token_log_probs(load_model(root, patch=patch, dtype="float32"), ROWS, 3)
        got = next_token_log_probs(layered_model(root, (tmp_path / "change",)), ROWS, 3)
        base = next_token_log_probs(load_model(root, dtype="float32"), ROWS, 3)
    assert (expected - base).abs().max() > 0.01
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_generated_replies_are_those_of_the_loaded_model() -> None:
    root = build("aligned", 0)
    tokenizer, prompts = load_tokenizer(root), ["how to steal a missile ?", "which topic ?"]
    model = layered_model(root)
    replies = generate(model, tokenizer, prompts, max_new_tokens=8, batch_size=2)
    assert replies == generate(load_model(root), tokenizer, prompts, max_new_tokens=8, batch_size=2)


class Loaded:
    """The bytes of weights in memory: each parameter that was ever given to the model and is still alive."""

    def __init__(self, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.alive: WeakSet[torch.nn.Parameter] = WeakSet()
        self.most = 0
        for parameter in model.parameters():
            self.add(parameter)
        register = torch.nn.Module.__setattr__

        def setattr_and_count(module: torch.nn.Module, name: str, value: Any) -> None:
            register(module, name, value)
            if isinstance(value, torch.nn.Parameter):
                self.add(value)

        monkeypatch.setattr(torch.nn.Module, "__setattr__", setattr_and_count)

    def add(self, parameter: torch.nn.Parameter) -> None:
        if parameter.device.type != "meta":
            self.alive.add(parameter)
            self.most = max(self.most, self.bytes)

    @property
    def bytes(self) -> int:
        return sum({one.data_ptr(): one.numel() * one.element_size() for one in self.alive}.values())


def layer_bytes(model: PreTrainedModel) -> Iterator[int]:
    for layer in model.model.layers:
        yield sum(4 * parameter.numel() for parameter in layer.parameters())


def test_law_at_most_one_layer_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = layered_model(build("aligned", 0))
    loaded = Loaded(model, monkeypatch)
    resident, layers = loaded.bytes, list(layer_bytes(model))
    outside = ("model.embed_tokens.weight", "model.norm.weight")
    assert resident == 4 * sum(model.get_parameter(name).numel() for name in outside)
    assert len(layers) == 4
    for _ in range(2):
        with torch.no_grad():
            model(input_ids=torch.tensor(ROWS[:1]))
        assert loaded.most == resident + max(layers)
        assert loaded.bytes == resident


def test_a_layer_is_dropped_also_where_its_forward_pass_fails() -> None:
    model = layered_model(build("aligned", 0))
    model.model.layers[2].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(input_ids=torch.tensor(ROWS[:1]))
    assert all(parameter.device.type == "meta" for layer in model.model.layers for parameter in layer.parameters())


def test_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    root = save_llama(tmp_path)
    tensors = load_file(root / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    model = layered_model(root)
    with pytest.raises(TensorMissing, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        model(input_ids=IDS)
    tensors["extra.weight"] = torch.zeros(2)
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TensorMissing, match=r"extra\.weight"):
        layered_model(root)
