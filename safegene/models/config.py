"""Which values of a config decide the forward pass, with every default filled in as transformers fills it.

Two configs describe the same model where these values are equal, however they are spelled: a value that is left out
equals its default, old spellings of rotary embeddings equal new ones. Left out are values that only training,
generation or storage reads, and those that the tensors' shapes already say.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_UNREAD = frozenset(
    {
        "architectures",
        "chunk_size_feed_forward",
        "dtype",
        "gradient_checkpointing",
        "id2label",
        "label2id",
        "name_or_path",
        "num_labels",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "router_z_loss_coef",
        "task_specific_params",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "vocab_size",
    }
)
_UNREAD_STARTS = ("_", "output_", "initializer_", "summary_")
_UNREAD_ENDS = ("_token_id", "_token_ids", "dropout", "_pdrop", "_dropout_prob", "_dropout_rate")
_READ_UNDECLARED = frozenset(  # model code reads these where a config has them, though its class does not declare them
    {
        "attention_chunk_size",
        "attention_head_size",
        "head_dim",
        "hidden_act",
        "is_causal",
        "is_decoder",
        "layer_types",
        "logits_mup_width_multiplier",
        "mlp_gate_softcap",
        "mlp_up_softcap",
        "num_local_experts",
        "partial_rotary_factor",
        "position_embedding_type",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "router_bias",
        "sliding_window",
        "swiglu_alpha",
        "swiglu_limit",
        "tie_word_embeddings",
        "use_bidirectional_attention",
    }
)
_DEFINE_LAYER_TYPES = ("max_window_layers", "use_sliding_window", "sliding_window_pattern")
_ROPE_WITHOUT_LENGTH = frozenset({"default", "linear", "llama3"})  # their angles do not depend on the longest input


def forward_values(config: "PretrainedConfig") -> dict[str, Any]:
    """The values of a config that decide the forward pass, as plain JSON; nested configs are nested.

    Args:
        config: as transformers resolved it.
    """
    declared = _declared(type(config))
    values: dict[str, Any] = {}
    for key, value in config.to_dict().items():
        inner = vars(config).get(key)
        if hasattr(inner, "to_dict"):
            values[key] = forward_values(inner)
        elif not _unread(key) and (declared is None or key in declared or key in _READ_UNDECLARED):
            values[key] = _plain(value)
    _fill_head_dim(values)
    types = values.get("layer_types")
    if types:
        for key in _DEFINE_LAYER_TYPES:
            values.pop(key, None)
        if "sliding_attention" not in types:
            values.pop("sliding_window", None)
    if (rope := values.get("rope_parameters")) and _rope_types(rope) <= _ROPE_WITHOUT_LENGTH:
        values.pop("max_position_embeddings", None)
    return {key: value for key, value in values.items() if value is not None}


def is_tied(values: Mapping[str, Any]) -> bool:
    """Whether the output embedding is the input embedding, by `forward_values`."""
    text = values.get("text_config")
    own = values.get("tie_word_embeddings")
    return bool(text.get("tie_word_embeddings") if own is None and isinstance(text, Mapping) else own)


def _unread(key: str) -> bool:
    return key in _UNREAD or key.startswith(_UNREAD_STARTS) or key.endswith(_UNREAD_ENDS)


def _declared(kind: type["PretrainedConfig"]) -> frozenset[str] | None:
    """The keys that a class of configs has by default; None where it has no defaults."""
    try:
        return frozenset(kind().to_dict())
    except Exception:  # a class that needs arguments: every key is compared
        return None


def _fill_head_dim(values: dict[str, Any]) -> None:
    width, heads = values.get("hidden_size"), values.get("num_attention_heads")
    if values.get("head_dim") is None and isinstance(width, int) and isinstance(heads, int) and heads:
        values["head_dim"] = width // heads


def _rope_types(rope: Mapping[str, Any]) -> set[str]:
    """The types of rotary embeddings: one, or one for each kind of layer."""
    nested = [value for value in rope.values() if isinstance(value, Mapping)]
    return {str(one.get("rope_type", "default")) for one in nested or [rope]}


def _plain(value: Any) -> Any:
    """A JSON value; 10000.0 is written as 10000, so that equal numbers have equal digests, and infinity as text."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items() if inner is not None}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
