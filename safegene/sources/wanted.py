"""Which files of a source are copied: weights, configs and tokenizer, by name; nothing else is ever read."""

import re

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


def wanted(name: str) -> bool:
    """Whether a file at the top of a source belongs to its checkpoint."""
    return name in WANTED or (_WEIGHTS.fullmatch(name) is not None and ".." not in name)
