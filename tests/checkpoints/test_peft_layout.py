"""What PEFT computes with an exported adapter, for architectures whose matrices are not all linear layers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Glm4MoeConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.export.adapter import CHANGE, read_change, serving_words, write_adapter
from safegene.checkpoints.structure import Structure
from safegene.errors import CheckpointError
from safegene.models.loading import load_model
from safegene.models.structure import analyse, model_without_weights
from safegene.vectors.linalg import LowRank
from safegene.workspace.digest import digest_tree

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft calls a deprecated name of transformers
SIZE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3,
}  # fmt: skip
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
ROUTED: dict[str, Any] = {**EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
MLA: dict[str, Any] = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    "num_key_value_heads": 4, "head_dim": 4,
}  # fmt: skip
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZE),
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3),
    "glm4_moe": Glm4MoeConfig(**SIZE, **ROUTED),
    "qwen3_moe": Qwen3MoeConfig(**SIZE, **EXPERTS, num_experts=4, mlp_only_layers=[0]),
    "deepseek_v3": DeepseekV3Config(**{**SIZE, **MLA}, **ROUTED),
    "mixtral": MixtralConfig(**SIZE, num_local_experts=4),
    "gpt_oss": GptOssConfig(**SIZE, num_local_experts=4),
}
IDS = torch.randint(3, 64, (3, 7), generator=torch.Generator().manual_seed(5))


@pytest.fixture(params=CONFIGS)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(CONFIGS[request.param]).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def skeleton(base: Path) -> PreTrainedModel:
    checkpoint = open_checkpoint(base)
    return model_without_weights(checkpoint.config, len(checkpoint.specs), str(base))


def random_change(structure: Structure, *, routers: bool) -> dict[str, LowRank]:
    """A change of every matrix, ranks taking turns."""
    random = torch.Generator().manual_seed(1)
    patch = {}
    for at, (name, matrix) in enumerate(structure.matrices.items()):
        if routers or matrix.kind != "router":
            (rows, columns), rank = matrix.shape, 2 + at % 2
            up, down = torch.randn(rows, rank, generator=random), torch.randn(rank, columns, generator=random)
            patch[name] = LowRank(up * 0.05, down)
    return patch


def logits(model: PreTrainedModel) -> Tensor:
    model.set_experts_implementation("eager")  # the default has no float64
    with torch.no_grad():
        return model.double()(input_ids=IDS).logits  # type: ignore[no-any-return]


def written(base: Path, out: Path, patch: Mapping[str, LowRank]) -> dict[str, Any]:
    matrices = analyse(open_checkpoint(base)).matrices
    return write_adapter(patch, base_model=str(base), out=out, matrices=matrices, model=lambda: skeleton(base))


def test_peft_computes_base_and_change(base: Path, tmp_path: Path) -> None:
    """CASES A6: dense layers among experts, fused experts and transposed layers, within 1e-5 of the change."""
    from peft import PeftModel

    patch = random_change(analyse(open_checkpoint(base)), routers=False)
    facts = written(base, tmp_path / "a", patch)
    assert facts["adapter_loads"], facts["not_carried"]
    before, after = (logits(load_model(base, patch=change)) for change in ({}, patch))
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "a").eval()
    size = (after - before).abs().max()
    assert size > 0.01
    assert (logits(loaded) - after).abs().max() < 1e-5 * size
    assert set(read_change(tmp_path / "a")) == set(patch)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"]
    assert not config["rank_pattern"]
    assert written(base, tmp_path / "again", patch) == facts
    assert digest_tree(tmp_path / "again") == digest_tree(tmp_path / "a")


def test_what_peft_does_not_carry_is_said_and_written_by_matrix_name(tmp_path: Path) -> None:
    """PEFT refuses the output projection of Mamba, whose kernel reads the weight past the layer."""
    AutoModelForCausalLM.from_config(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1)).save_pretrained(
        tmp_path / "base"
    )
    patch = random_change(analyse(open_checkpoint(tmp_path / "base")), routers=True)
    assert any("out_proj" in name for name in patch)
    facts = written(tmp_path / "base", tmp_path / "a", patch)
    assert not facts["adapter_loads"]
    assert "out_proj" in facts["not_carried"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == [CHANGE]
    for name, change in read_change(tmp_path / "a").items():
        assert torch.equal(change.dense(), patch[name].dense())
    assert "serve the merged checkpoint" in serving_words(facts)


def test_a_plain_adapter_needs_no_second_file(tmp_path: Path) -> None:
    base = tmp_path / "base"
    AutoModelForCausalLM.from_config(CONFIGS["llama"]).save_pretrained(base)
    patch = random_change(analyse(open_checkpoint(base)), routers=True)
    written(base, tmp_path / "a", patch)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    for name, change in read_change(tmp_path / "a").items():
        torch.testing.assert_close(change.dense(), patch[name].dense())
    with pytest.raises(CheckpointError, match=r"model\.layers\.9"):
        written(base, tmp_path / "b", {"model.layers.9.mlp.up_proj.weight": next(iter(patch.values()))})


@pytest.mark.parametrize(
    ("rank", "words"),
    [
        (24, "vLLM serves it with --max-lora-rank 32"),
        (528, "vLLM serves adapters of rank 512 at most; serve the merged"),
    ],
)
def test_the_rank_that_servers_need_is_said(rank: int, words: str) -> None:
    """CASES A15: a target of rank 520 is exported at 528, which vLLM does not serve."""
    assert words in serving_words({"rank": rank})
