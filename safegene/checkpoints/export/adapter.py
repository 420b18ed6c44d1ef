"""A repair as a PEFT LoRA adapter, which ``peft`` and vLLM load on the unmodified model."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from safegene.checkpoints.adapter import Adapter, open_adapter
from safegene.checkpoints.export.peft_layout import (
    PREFIX,
    NotCarried,
    Targets,
    adapter_tensors,
    converts_names,
    find_targets,
    padded,
)
from safegene.checkpoints.structure import Matrix, by_stored_name
from safegene.checkpoints.wanted import ADAPTER_CONFIG as CONFIG
from safegene.checkpoints.wanted import ADAPTER_WEIGHTS as WEIGHTS
from safegene.errors import CheckpointError
from safegene.vectors.linalg import LowRank, Patch, concat
from safegene.vectors.vector import read_factors, write_factors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHANGE = "change.safetensors"
SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values that vLLM accepts as max_lora_rank


def write_adapter(
    patch: Patch,
    *,
    base_model: str,
    out: Path,
    own: Adapter | None = None,
    revision: str | None = None,
    matrices: Mapping[str, Matrix] | None = None,
    model: "Callable[[], PreTrainedModel] | None" = None,
) -> dict[str, Any]:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` (fp32) into ``out``; equal input, equal bytes.

    For a LoRA target the adapter is the exact concatenation of the target's own adapter and the repair,
    ``dW = [up_own up] @ [down_own; down]``, and loads on the *base*; otherwise it loads on the target. Every scale is
    multiplied into the factors, and all are padded with zeros to one rank r with alpha = r: tools that ignore PEFT's
    patterns, or divide alpha by a tensor's own rank, compute the same change.

    Where the adapter changes anything but linear layers of attention and MLPs, ``change.safetensors`` holds the same
    change by matrix name (`read_change`). Where PEFT cannot carry the change, only that file is written.

    Args:
        patch: matrix name -> change, with its coefficients.
        base_model: the model that the adapter loads on, for the config.
        out: the folder; created where it is missing.
        own: the target's own adapter.
        revision: of ``base_model``, for the config.
        matrices: matrix name -> where the model holds it; None where every change is of a linear layer.
        model: makes the model without weights, whose class decides how PEFT holds the changes; with ``matrices``.

    Returns:
        ``extra_parameters`` (of the repair), ``parameters`` (of the adapter), ``rank``, ``matrices`` (their number),
        ``served_rank`` (the ``max_lora_rank`` that vLLM needs; None where the rank is too large), ``adapter_loads``
        (whether PEFT carries the change), ``not_carried`` (why not, else empty).

    Raises:
        CheckpointError: there is no change, or one of no matrix.
    """
    changes = concatenate_factors(patch, own, matrices)
    if not changes:
        raise CheckpointError(f"expected at least one change, got none, for {out}")
    out.mkdir(parents=True, exist_ok=True)
    skeleton = model() if model else None
    targets = find_targets(changes, matrices or {}, skeleton)
    config = _config(targets, base_model, revision)
    plain, reason = _is_plain(changes, matrices or {}, skeleton), ""
    try:
        tensors = _tensors(targets, config, None if plain else skeleton)
    except NotCarried as error:
        tensors, reason = {}, error.message
    else:
        (out / CONFIG).write_text(config_text(config), encoding="utf-8")
        (out / WEIGHTS).write_bytes(_saved(tensors))
    if not plain:
        write_factors(changes, out / CHANGE)
    return {
        "extra_parameters": sum(change.numel() for change in patch.values()),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "rank": targets.rank,
        "matrices": len(changes),
        "served_rank": served_rank(targets.rank),
        "adapter_loads": not reason,
        "not_carried": reason,
    }


def withdraw_adapter(folder: Path, facts: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """Remove an adapter that PEFT does not compute and keep its change by matrix name; the facts with the reason."""
    for name in (CONFIG, WEIGHTS):
        (folder / name).unlink()
    return {**facts, "parameters": 0, "adapter_loads": False, "not_carried": reason}


def config_text(config: Mapping[str, Any]) -> str:
    """The text of ``adapter_config.json``; equal values, equal bytes."""
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def read_change(folder: Path) -> Patch:
    """Matrix name -> the whole change of an adapter that `write_adapter` wrote, float32.

    Raises:
        CheckpointError, FormatError: a file is missing or malformed.
    """
    return read_factors(folder / CHANGE) if (folder / CHANGE).is_file() else open_adapter(folder).patch()


def served_rank(rank: int) -> int | None:
    """The ``max_lora_rank`` with which vLLM serves an adapter of that rank; None where it serves none so large."""
    return next((served for served in SERVED_RANKS if served >= rank), None)


def serving_words(facts: Mapping[str, Any]) -> str:
    """How the exported repair is served, in words; ``facts`` are those of `write_adapter`."""
    if not facts.get("adapter_loads", True):
        return f"no adapter ({facts['not_carried']}): serve the merged checkpoint, `safegene merge`"
    rank = facts["rank"]
    if (served := served_rank(rank)) is None:
        return (
            f"rank {rank}: vLLM serves adapters of rank {SERVED_RANKS[-1]} at most; "
            "serve the merged checkpoint, `safegene merge`"
        )
    return f"rank {rank}: vLLM serves it with --max-lora-rank {served}"


def concatenate_factors(
    patch: Patch, own: Adapter | None, matrices: Mapping[str, Matrix] | None = None
) -> dict[str, LowRank]:
    """Matrix name -> the exact sum ``own + patch``, as concatenated factors, the target's own first."""
    first = by_stored_name(matrices or {}, own.patch()) if own else {}
    names = sorted({*first, *patch})
    return {name: concat([part[name] for part in (first, patch) if name in part]) for name in names}


def _is_plain(changes: Patch, matrices: Mapping[str, Matrix], model: "PreTrainedModel | None") -> bool:
    """Whether all are linear layers of attention and MLPs, stored as the model names them: PEFT need not be asked."""
    if model is not None and converts_names(model):
        return False
    return all(
        matrix.apply == "linear" and matrix.kind in ("attention", "mlp") and matrix.parameter == name
        for name, matrix in matrices.items()
        if name in changes
    )


def _config(targets: Targets, base_model: str, revision: str | None) -> dict[str, Any]:
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": targets.rank,
        "lora_alpha": targets.rank,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": sorted(targets.modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": targets.transposed,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }
    if targets.parameters:
        config["target_parameters"] = sorted(targets.parameters)
    if revision:
        config["revision"] = revision
    return config


def _tensors(targets: Targets, config: Mapping[str, Any], model: "PreTrainedModel | None") -> dict[str, Tensor]:
    """The adapter's tensors; PEFT is asked for names and shapes where a model is given."""
    if model is not None:
        return adapter_tensors(model, config, targets)
    tensors = {}
    for module, change in targets.modules.items():
        factors = padded(change, targets.rank)
        tensors[f"{PREFIX}{module}.lora_A.weight"] = factors.down.detach().cpu().float().contiguous()
        tensors[f"{PREFIX}{module}.lora_B.weight"] = factors.up.detach().cpu().float().contiguous()
    return tensors


def _saved(tensors: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return bytes(save(dict(sorted(tensors.items())), metadata={"format": "pt"}))
