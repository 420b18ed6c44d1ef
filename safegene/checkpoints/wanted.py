"""Which files of a folder, prefix or repository belong to a checkpoint; no other file is opened.

A file belongs to it by its name, or because the shard index names it. Training tools leave other files beside the
weights: optimizer states and training arguments (pickles), logs, exports to other formats. They are ignored by name.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from safegene.errors import CheckpointError, FormatError, UnsafeCheckpoint

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".h5")
WANTED = (
    "config.json",
    "generation_config.json",
    INDEX,
    ADAPTER_CONFIG,
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_WEIGHTS = re.compile(r"(?:adapter_)?model(?:-[A-Za-z0-9_.-]+)?\.safetensors")
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")


def is_checkpoint_file(name: str) -> bool:
    """Whether a file at the top level belongs to a checkpoint by its name."""
    return name in WANTED or (_WEIGHTS.fullmatch(name) is not None and ".." not in name)


def checkpoint_files(names: Collection[str], read_index: Callable[[], Any]) -> tuple[str, ...]:
    """The files of a checkpoint, sorted: by name, and whatever safetensors files the index names.

    Args:
        names: of all files at the top level.
        read_index: parses the index; called only where a safetensors file has none of the usual names.

    Raises:
        FormatError: the index maps no tensors to shards.
        UnsafeCheckpoint: it names a shard outside the folder.
    """
    wanted = {name for name in names if is_checkpoint_file(name)}
    others = {name for name in names if name.endswith(".safetensors")} - wanted
    if others and INDEX in wanted:
        wanted |= others & set(weight_map(read_index(), INDEX).values())
    return tuple(sorted(wanted))


def weight_map(index: Any, where: object) -> dict[str, str]:
    """Tensor name -> shard, of a parsed shard index.

    Raises:
        FormatError: it has no such map, or an empty one.
        UnsafeCheckpoint: a shard is not a safetensors file beside the index.
    """
    weights = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise FormatError(f"expected weight_map to map tensors to shards, got {type(weights).__name__}, in {where}")
    for name, shard in weights.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard) or ".." in shard:
            raise UnsafeCheckpoint(f"expected shards beside the index, got {str(shard)[:80]!r} for {name}, in {where}")
    return weights


def refuse_pickles_alone(names: Collection[str], where: object) -> None:
    """Refuse a folder whose only weights are pickles; pickles beside safetensors weights are ignored.

    Raises:
        UnsafeCheckpoint: names the first pickle.
    """
    pickles = sorted(name for name in names if name.lower().endswith(PICKLES))
    if pickles and not any(name.endswith(".safetensors") for name in names):
        raise UnsafeCheckpoint(
            f"expected safetensors weights, got pickle files such as {pickles[0]!r}, "
            f"which can run code when opened, in {where}",
            remedy="convert the weights to safetensors on a machine where you may run this checkpoint's code",
        )


def require_complete(names: Collection[str], shards: Mapping[str, str], where: str) -> None:
    """Check that the names include a config, weights, and every shard of an index's ``weight_map``.

    Raises:
        CheckpointError: a file is missing.
    """
    full = "config.json" in names and (WEIGHTS in names or INDEX in names)
    if not full and not {ADAPTER_CONFIG, ADAPTER_WEIGHTS} <= set(names):
        raise CheckpointError(f"expected a config and safetensors weights, got {sorted(names)[:5]}, in {where}")
    if missing := sorted(set(shards.values()) - set(names)):
        raise CheckpointError(f"expected the shard {missing[0]}, got no such object, in {where}")
