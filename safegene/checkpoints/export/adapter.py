"""The repair as a PEFT LoRA adapter that ``peft`` and vLLM load on the unmodified target."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safegene.checkpoints.adapter import CONFIG, WEIGHTS, Adapter
from safegene.errors import CheckpointError
from safegene.vectors.linalg import LowRank, Patch, concat

SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values vLLM takes for max_lora_rank


def write_adapter(patch: Patch, *, base_model: str, out: Path, own: Adapter | None = None) -> dict[str, Any]:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` (fp32) into ``out``; equal input, equal bytes.

    ``dW = [up_own up] @ [down_own; down]``: for a LoRA target the adapter is the exact concatenation with the target's
    own (its scale folded into ``up_own``) and loads on the *base*; otherwise it loads on the target. Every scale is
    in the factors, so alpha / r = 1 for every matrix, whatever its rank.

    Args:
        patch: matrix name -> change, coefficients already in it.
        base_model: what the adapter loads on; it goes into the config.
        out: the folder; made if absent.
        own: the target's own adapter.

    Returns:
        ``extra_parameters`` (numbers that the repair adds), ``parameters`` (of the adapter), ``rank`` (largest),
        ``matrices``, ``served_rank`` (the ``max_lora_rank`` that vLLM needs, null if too large).

    Raises:
        CheckpointError: there is no change to write, or one that is no ``<module>.weight``.
    """
    whole = concatenate_factors(patch, own)
    if not whole or (odd := [name for name in whole if not name.endswith(".weight")]):
        raise CheckpointError(f"expected changes of <module>.weight, got {odd[:1] if whole else 'none'}, for {out}")
    modules = {name.removesuffix(".weight"): change for name, change in sorted(whole.items())}
    out.mkdir(parents=True, exist_ok=True)
    config = _config({module: change.rank for module, change in modules.items()}, base_model)
    (out / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (out / WEIGHTS).write_bytes(_weights(modules))
    rank = config["r"]
    return {
        "extra_parameters": sum(change.numel() for change in patch.values()),
        "parameters": sum(change.numel() for change in modules.values()),
        "rank": rank,
        "matrices": len(modules),
        "served_rank": next((served for served in SERVED_RANKS if served >= rank), None),
    }


def concatenate_factors(patch: Patch, own: Adapter | None) -> dict[str, LowRank]:
    """Matrix name -> ``own + patch``, exact: factors side by side, own first."""
    first = own.patch() if own else {}
    names = sorted({*first, *patch})
    return {name: concat([part[name] for part in (first, patch) if name in part]) for name in names}


def _config(ranks: Mapping[str, int], base_model: str) -> dict[str, Any]:
    top = max(ranks.values())
    odd = {module: rank for module, rank in ranks.items() if rank != top}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": top,
        "lora_alpha": top,
        "rank_pattern": odd,
        "alpha_pattern": odd,
        "target_modules": sorted(ranks),
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
