"""The files of a source that are copied: weights, configs and tokenizer, by name; no other file is read."""

import re
from collections.abc import Collection, Mapping

from safegene.checkpoints.adapter import CONFIG, WEIGHTS
from safegene.checkpoints.checkpoint import INDEX
from safegene.checkpoints.checkpoint import WEIGHTS as FULL
from safegene.errors import CheckpointError

WANTED = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "adapter_config.json",
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


def is_checkpoint_file(name: str) -> bool:
    """Whether a file at the top level of a source belongs to its checkpoint."""
    return name in WANTED or (_WEIGHTS.fullmatch(name) is not None and ".." not in name)


def require_complete(names: Collection[str], shards: Mapping[str, str], where: str) -> None:
    """Check that the names include a config, weights, and every shard of an index's ``weight_map``.

    Raises:
        CheckpointError: a file is missing.
    """
    full = "config.json" in names and (FULL in names or INDEX in names)
    if not full and not {CONFIG, WEIGHTS} <= set(names):
        raise CheckpointError(f"expected a config and safetensors weights, got {sorted(names)[:5]}, in {where}")
    if missing := sorted(set(shards.values()) - set(names)):
        raise CheckpointError(f"expected the shard {missing[0]}, got no such object, in {where}")
