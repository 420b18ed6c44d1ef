"""A repair as a PEFT LoRA adapter, which ``peft`` and vLLM load on the unmodified model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.nn import functional

from safegene.checkpoints.adapter import Adapter
from safegene.checkpoints.wanted import ADAPTER_CONFIG as CONFIG
from safegene.checkpoints.wanted import ADAPTER_WEIGHTS as WEIGHTS
from safegene.errors import CheckpointError
from safegene.vectors.linalg import LowRank, Patch, concat

SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values that vLLM accepts as max_lora_rank


def write_adapter(patch: Patch, *, base_model: str, out: Path, own: Adapter | None = None) -> dict[str, Any]:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` (fp32) into ``out``; equal input, equal bytes.

    For a LoRA target the adapter is the exact concatenation of the target's own adapter and the repair,
    ``dW = [up_own up] @ [down_own; down]``, and loads on the *base*; otherwise it loads on the target. Every scale is
    multiplied into the factors, and all are padded with zeros to one rank r with alpha = r: tools that ignore PEFT's
    patterns, or divide alpha by a tensor's own rank, compute the same change.

    Args:
        patch: matrix name -> change, with its coefficients.
        base_model: the model that the adapter loads on, for the config.
        out: the folder; created where it is missing.
        own: the target's own adapter.

    Returns:
        ``extra_parameters`` (of the repair), ``parameters`` (of the adapter), ``rank`` (the largest), ``matrices``
        (their number), ``served_rank`` (the ``max_lora_rank`` that vLLM needs; None where the rank is too large).

    Raises:
        CheckpointError: there is no change, or a name is not of the form ``<module>.weight``.
    """
    changes = concatenate_factors(patch, own)
    if not changes or (odd := [name for name in changes if not name.endswith(".weight")]):
        raise CheckpointError(f"expected changes of <module>.weight, got {odd[:1] if changes else 'none'}, for {out}")
    rank = max(change.rank for change in changes.values())
    modules = {name.removesuffix(".weight"): padded(change, rank) for name, change in sorted(changes.items())}
    out.mkdir(parents=True, exist_ok=True)
    config = _config(sorted(modules), rank, base_model)
    (out / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (out / WEIGHTS).write_bytes(_weights(modules))
    return {
        "extra_parameters": sum(change.numel() for change in patch.values()),
        "parameters": sum(change.numel() for change in modules.values()),
        "rank": rank,
        "matrices": len(modules),
        "served_rank": next((served for served in SERVED_RANKS if served >= rank), None),
    }


def concatenate_factors(patch: Patch, own: Adapter | None) -> dict[str, LowRank]:
    """Matrix name -> the exact sum ``own + patch``, as concatenated factors, the target's own first."""
    first = own.patch() if own else {}
    names = sorted({*first, *patch})
    return {name: concat([part[name] for part in (first, patch) if name in part]) for name in names}


def padded(change: LowRank, rank: int) -> LowRank:
    """The same change with factors (out, rank) and (rank, in), zeros after its own."""
    more = rank - change.rank
    return LowRank(functional.pad(change.up, (0, more)), functional.pad(change.down, (0, 0, 0, more)))


def _config(modules: Sequence[str], rank: int, base_model: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": list(modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def _weights(modules: Mapping[str, LowRank]) -> bytes:
    from safetensors.torch import save

    tensors = {}
    for module, change in modules.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = change.down.detach().cpu().float().contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = change.up.detach().cpu().float().contiguous()
    return bytes(save(tensors, metadata={"format": "pt"}))
