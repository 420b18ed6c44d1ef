"""Tiny random models of the text architectures of transformers, with a word-level tokenizer and a chat template.

Every model has two to four layers, a width of 32 and the vocabulary of the tiny family. Those of the kind ``dense``
have attention and one MLP a layer, ``moe`` experts, ``hybrid`` layers with a recurrent or convolutional state, and
``multimodal`` a vision tower beside the language model, as the published checkpoints of that type have it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from safegene.tiny.model import new_tokenizer

ArchitectureKind = Literal["dense", "moe", "hybrid", "multimodal"]
TEXT: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
EXPERTS: Mapping[str, Any] = {
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
}
LATENT: Mapping[str, Any] = {
    "head_dim": None,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
VISION: Mapping[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
MAMBA_HEADS: Mapping[str, Any] = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 16}
LINEAR: Mapping[str, Any] = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}


@dataclass(frozen=True)
class Architecture:
    """How a tiny model of one ``model_type`` is made.

    Attributes:
        kind: what its layers hold.
        values: config values beside or in place of `TEXT`; None leaves the class's own.
    """

    kind: ArchitectureKind = "dense"
    values: Mapping[str, Any] = field(default_factory=dict)


def _moe(**values: Any) -> Architecture:
    return Architecture("moe", {**EXPERTS, **values})


def _hybrid(**values: Any) -> Architecture:
    return Architecture("hybrid", values)


def _vision(vision: Mapping[str, Any], text: Mapping[str, Any], **values: Any) -> Architecture:
    nested = {"text_config": {**TEXT, **text}, "vision_config": {**VISION, **vision}}
    return Architecture("multimodal", {**nested, **values})


_SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
ARCHITECTURES: Mapping[str, Architecture] = {
    **dict.fromkeys(
        (
            *("llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "glm", "glm4", "phi", "phi3"),
            *("olmo", "olmo2", "granite", "starcoder2", "stablelm", "cohere", "cohere2", "nemotron", "smollm3"),
            *("exaone4", "helium", "ernie4_5", "hunyuan_v1_dense", "seed_oss", "arcee", "apertus", "diffllama"),
            *("gpt2", "gpt_bigcode", "gpt_neox", "bloom", "mpt", "biogpt", "persimmon"),
        ),
        Architecture(),
    ),
    "gemma3_text": Architecture(values=_SLIDING),
    "olmo3": Architecture(values=_SLIDING),
    "opt": Architecture(values={"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gpt_neo": Architecture(values={"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 8}),
    "gptj": Architecture(values={"rotary_dim": 4}),
    "codegen": Architecture(values={"rotary_dim": 4}),
    "falcon": Architecture(values={"head_dim": None}),
    "minicpm3": Architecture(values=LATENT),
    "mixtral": _moe(),
    "qwen2_moe": _moe(shared_expert_intermediate_size=16),
    "qwen3_moe": _moe(mlp_only_layers=[0]),
    "olmoe": _moe(),
    "flex_olmo": _moe(),
    "deepseek_v2": _moe(**LATENT, n_shared_experts=1, first_k_dense_replace=1),
    "deepseek_v3": _moe(**LATENT, n_group=1, topk_group=1, first_k_dense_replace=1),
    "glm4_moe": _moe(first_k_dense_replace=1),
    "granitemoe": _moe(),
    "phimoe": _moe(),
    "gpt_oss": _moe(**_SLIDING),
    "llama4_text": _moe(intermediate_size_mlp=48),
    "dots1": _moe(n_shared_experts=1, first_k_dense_replace=1),
    "ernie4_5_moe": _moe(moe_num_experts=4, moe_k=2, moe_num_shared_experts=1, moe_layer_start_index=1),
    "jetmoe": _moe(kv_channels=8),
    "hunyuan_v1_moe": _moe(),
    "qwen3_next": _hybrid(**EXPERTS, **LINEAR, shared_expert_intermediate_size=16),
    "qwen3_5_text": _hybrid(**LINEAR),
    "olmo_hybrid": _hybrid(**LINEAR),
    "minimax": _hybrid(**EXPERTS, layer_types=["linear_attention", "full_attention"], block_size=8),
    "falcon_h1": _hybrid(**MAMBA_HEADS, mamba_d_ssm=64),
    "bamba": _hybrid(**MAMBA_HEADS, attn_layer_indices=[1]),
    "granitemoehybrid": _hybrid(
        **EXPERTS, **MAMBA_HEADS, layer_types=["mamba", "attention"], shared_intermediate_size=16
    ),
    "lfm2": _hybrid(layer_types=["conv", "full_attention"], block_ff_dim=48, block_auto_adjust_ff_dim=False),
    "lfm2_moe": _hybrid(**EXPERTS, layer_types=["conv", "full_attention"], num_dense_layers=1),
    "jamba": _hybrid(**EXPERTS, attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False, mamba_d_state=8),
    "zamba": _hybrid(
        attention_head_dim=16,
        num_hidden_layers=4,
        num_key_value_heads=4,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        use_mamba_kernels=False,
    ),
    "zamba2": _hybrid(
        num_hidden_layers=4,
        num_key_value_heads=4,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        n_mamba_heads=4,
        mamba_d_state=8,
        chunk_size=16,
        use_mamba_kernels=False,
    ),
    "nemotron_h": _hybrid(
        num_hidden_layers=None,
        layers_block_type=["mamba", "attention", "mlp"],
        mamba_num_heads=4,
        mamba_head_dim=16,
        ssm_state_size=8,
        n_groups=1,
        chunk_size=16,
        use_mamba_kernels=False,
    ),
    "mamba": _hybrid(state_size=8),
    "falcon_mamba": _hybrid(state_size=8),
    "mamba2": _hybrid(num_heads=4, head_dim=16, state_size=8, n_groups=1, chunk_size=16),
    "recurrent_gemma": _hybrid(block_types=["recurrent", "attention"], attention_window_size=8, head_dim=None),
    "rwkv": _hybrid(attention_hidden_size=32),
    "kimi_linear": _hybrid(
        **EXPERTS,
        **LATENT,
        linear_head_dim=8,
        linear_num_heads=4,
        layer_types=["linear_attention", "full_attention"],
    ),
    "gemma3": _vision({}, _SLIDING, mm_tokens_per_image=4, image_token_index=2, boi_token_index=2, eoi_token_index=3),
    "mistral3": _vision(
        {"model_type": "pixtral", "head_dim": 8}, {"model_type": "mistral"}, image_token_index=2, spatial_merge_size=1
    ),
    "llama4": _vision(
        {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16, "pixel_shuffle_ratio": 1.0},
        {**EXPERTS, "intermediate_size_mlp": 48},
        image_token_index=2,
        boi_token_index=2,
        eoi_token_index=3,
    ),
}
EACH_KIND = ("llama", "gpt2", "gpt_neo", "gemma3", "qwen3_moe", "qwen3_next", "falcon_h1", "lfm2", "mamba")
"""One or two of each kind, for tests that cannot run all."""


def new_architecture(model_type: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model with random weights, fp32, in evaluation mode; ``changes`` replaces config values.

    Its replies end with the tokenizer's end token or its unknown token, so that they have different lengths.
    """
    made, tokenizer = ARCHITECTURES[model_type], new_tokenizer()
    ends = [tokenizer.eos_token_id, tokenizer.unk_token_id]
    words = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": ends, "bos_token_id": None}
    values = {**made.values, **changes}
    if made.kind == "multimodal":
        values["text_config"] = {**values["text_config"], **words}
    else:
        values = {**TEXT, **words, **values}
    config = AutoConfig.for_model(model_type, **{key: value for key, value in values.items() if value is not None})
    auto: Any = AutoModelForImageTextToText if made.kind == "multimodal" else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = auto.from_config(config, dtype=torch.float32).eval()
        for parameter in model.parameters():  # norms and biases too, which start as ones and zeros
            if parameter.ndim == 1:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
        model.get_input_embeddings().weight.data.mul_(0.2)  # else a tied model repeats the last token
    model.generation_config.eos_token_id = ends
    return model


def save_architecture(folder: Path, model_type: str, *, seed: int = 0) -> Path:
    """The checkpoint of such a model with its tokenizer, as transformers saves it."""
    new_architecture(model_type, seed=seed).save_pretrained(folder)
    new_tokenizer().save_pretrained(folder)
    return folder
