"""An adapter in PEFT's own spelling, for PEFT to load: other spellings are read by safegene and not by PEFT."""

import json
from pathlib import Path

from safegene.checkpoints.adapter import Adapter
from safegene.checkpoints.unsafe import read_json
from safegene.checkpoints.wanted import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from safegene.workspace.atomic import draft_folder, write_file
from safegene.workspace.digest import PREFIX, canonical_json, digest_bytes
from safegene.workspace.layout import cache_folder


def peft_folder(adapter: Adapter) -> Path:
    """The adapter's folder where PEFT reads it as safegene does, else a folder of the cache with the same numbers.

    There the tensors have PEFT's names, and the config names each module in place of a regular expression. It is
    compared with its content at every call, so a changed file is written again.
    """
    if adapter.is_plain:
        return adapter.root
    content = {ADAPTER_CONFIG: _config(adapter), ADAPTER_WEIGHTS: _weights(adapter)}
    digest = digest_bytes(b"".join(digest_bytes(data).encode() for data in content.values()))
    folder = cache_folder() / "adapters" / digest.removeprefix(PREFIX)
    if not all((folder / name).is_file() and (folder / name).read_bytes() == data for name, data in content.items()):
        with draft_folder(folder) as draft:
            for name, data in content.items():
                write_file(draft / name, data)
    return folder


def _config(adapter: Adapter) -> bytes:
    config = read_json(adapter.root / ADAPTER_CONFIG)
    left_out = dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"))
    return json.dumps(config | left_out | {"target_modules": list(adapter.modules)}, indent=2).encode()


def _weights(adapter: Adapter) -> bytes:
    """The file with other names in its header; the data are the same bytes. Adapters fit into memory."""
    header, at = {}, 0
    for name, spec in adapter.specs.items():
        size = spec.end - spec.start
        header[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [at, at + size]}
        at += size
    text = canonical_json({"__metadata__": {"format": "pt"}, **header})
    text += b" " * (-len(text) % 8)
    raw = (adapter.root / ADAPTER_WEIGHTS).read_bytes()
    data = b"".join(raw[spec.start : spec.end] for spec in adapter.specs.values())
    return len(text).to_bytes(8, "little") + text + data
