"""The matrices of an architecture: where the model holds each of them, and changes that are applied there."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GPT2Config,
    GptOssConfig,
    GraniteMoeConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.structure import Structure
from safegene.errors import CheckpointError
from safegene.models.loading import load_model
from safegene.models.patching import add_patch, low_rank_hooks, matrix_weight, patched
from safegene.models.structure import analyse, remember, structure_of
from safegene.vectors.linalg import LowRank
from tests.factories.architectures import new_architecture, save_architecture

SIZE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
MLA: dict[str, Any] = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
}  # fmt: skip
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZE),
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4),
    "mamba": MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2),
    "qwen3_moe": Qwen3MoeConfig(**SIZE, **EXPERTS, num_experts=4, mlp_only_layers=[0]),
    "mixtral": MixtralConfig(**SIZE, num_local_experts=4),
    "granitemoe": GraniteMoeConfig(**SIZE, num_local_experts=4, num_experts_per_tok=2),
    "gpt_oss": GptOssConfig(**SIZE, num_local_experts=4, head_dim=8),
    "deepseek_v3": DeepseekV3Config(
        **{**SIZE, "num_key_value_heads": 4}, **EXPERTS, **MLA, n_routed_experts=4, n_group=1, topk_group=1,
        first_k_dense_replace=1,
    ),
}  # fmt: skip
IDS = torch.randint(3, 64, (3, 7), generator=torch.Generator().manual_seed(5))


def load(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    remember(model, {name: spec.shape for name, spec in open_checkpoint(folder).specs.items()})
    return model


@pytest.fixture(params=CONFIGS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(CONFIGS[request.param]).save_pretrained(tmp_path)
    return tmp_path


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits.double()  # type: ignore[no-any-return]


def patch_of(structure: Structure, rank: int = 2) -> dict[str, LowRank]:
    random = torch.Generator().manual_seed(1)
    patch = {}
    for name, (rows, columns) in ((name, matrix.shape) for name, matrix in structure.matrices.items()):
        up, down = torch.randn(rows, rank, generator=random), torch.randn(rank, columns, generator=random)
        patch[name] = LowRank(up * 0.1, down)
    return patch


def test_every_stored_tensor_is_a_matrix_or_has_a_kind(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    structure = analyse(checkpoint)
    held = {matrix.tensor for matrix in structure.matrices.values()}
    assert held | set(structure.others) == set(checkpoint.specs)
    assert not held & set(structure.others)
    assert "other" not in structure.others.values()
    large = sum(checkpoint.specs[name].numel for name in held)
    left = [name for name, kind in structure.others.items() if kind not in ("embedding", "head")]
    assert large > 3 * sum(checkpoint.specs[name].numel for name in left), "nothing large is left out"
    assert structure == structure_of(load(folder)), "the model in memory tells the same"


def test_a_matrix_is_where_the_structure_says(folder: Path) -> None:
    checkpoint, model = open_checkpoint(folder), load(folder)
    for name, matrix in structure_of(model).matrices.items():
        assert checkpoint.matrix_shape(name) == matrix.shape
        assert torch.equal(matrix_weight(model, name), checkpoint.matrix(name)), name


def test_a_change_beside_the_weights_does_what_one_in_the_weights_does(folder: Path) -> None:
    model = load(folder)
    before, patch = logits(model), patch_of(structure_of(model))
    alphas = {name: torch.ones(()) for name in patch}
    with low_rank_hooks(model, patch, alphas):
        beside = logits(model)
    assert torch.equal(logits(model), before)
    with patched(model, patch):
        inside = logits(model)
    assert torch.equal(logits(model), before), "the exact weights are restored"
    size = (inside - before).norm()
    assert size > 0.01
    assert (beside - inside).norm() < 1e-4 * size


def test_each_matrix_alone_changes_the_model(folder: Path) -> None:
    model = load(folder)
    before, patch = logits(model), patch_of(structure_of(model))
    for name, change in patch.items():
        with low_rank_hooks(model, {name: change.scaled(10.0)}, {name: torch.ones(())}):
            beside = logits(model)
        add_patch(model, {name: change.scaled(10.0)})
        inside = logits(model)
        add_patch(model, {name: change.scaled(10.0)}, scale=-1.0)
        assert (beside - inside).norm() <= 1e-3 * (inside - before).norm() + 1e-4, name


def test_coefficients_get_a_gradient_everywhere(folder: Path) -> None:
    model = load(folder)
    patch = patch_of(structure_of(model))
    alphas = {name: torch.ones((), requires_grad=True) for name in patch}
    with low_rank_hooks(model, patch, alphas, torch.tensor([0.9, 1.0, 1.1])):
        model(input_ids=IDS).logits.logsumexp(-1).sum().backward()
    used = [name for name, alpha in alphas.items() if alpha.grad is not None and float(alpha.grad) != 0.0]
    dense = [name for name, matrix in structure_of(model).matrices.items() if matrix.expert is None]
    assert set(dense) <= set(used)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "no_such_model"}, "no_such_model"),
        ({"num_hidden_layers": 10**9}, "1000000000"),
        ({"num_attention_heads": 0}, "config"),
        ({"hidden_size": "many"}, "config"),
    ],
)
def test_a_config_that_describes_no_model_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    from dataclasses import replace

    AutoModelForCausalLM.from_config(CONFIGS["llama"]).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        analyse(replace(checkpoint, config={**checkpoint.config, **change}))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:.*is_gradient_checkpointing")
@pytest.mark.parametrize(("kind", "modules"), [("gpt2", ["c_attn", "c_fc"]), ("mixtral", ["q_proj", "o_proj"])])
def test_an_adapter_is_read_as_peft_reads_it(tmp_path: Path, kind: str, modules: list[str]) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    AutoModelForCausalLM.from_config(CONFIGS[kind]).save_pretrained(base)
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=3, target_modules=modules))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    peft.save_pretrained(str(adapter))
    ours, plain = load_model(base, adapters=(adapter,)), load_model(base)
    expected = logits(peft.eval())
    assert (logits(plain) - expected).norm() > 0.01
    assert (logits(ours) - expected).norm() < 1e-4 * (logits(plain) - expected).norm()


@pytest.mark.parametrize("model_type", ["llama4_text", "phimoe"])
def test_a_router_that_returns_more_than_its_product_gets_its_change_in_the_parameter(model_type: str) -> None:
    routers = [one for one in structure_of(new_architecture(model_type)).matrices.values() if one.kind == "router"]
    assert routers
    assert {one.apply for one in routers} == {"parameter"}


@pytest.mark.parametrize("model_type", ["kimi_linear", "olmo_hybrid"])
def test_a_parameter_of_several_stored_tensors_is_compared_with_none_of_them(tmp_path: Path, model_type: str) -> None:
    assert analyse(open_checkpoint(save_architecture(tmp_path / "m", model_type))).matrices


def test_a_linear_layer_with_a_forward_pass_of_its_own_is_linear() -> None:
    matrices = structure_of(new_architecture("falcon")).matrices.values()
    assert matrices
    assert {one.apply for one in matrices} == {"linear"}
