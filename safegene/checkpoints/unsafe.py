"""Refuses checkpoint folders and JSON files that could run code: pickled weights, links, and names of code to load."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

from safegene.checkpoints.wanted import INDEX, checkpoint_files, refuse_pickles_alone
from safegene.errors import CheckpointError, FormatError, UnsafeCheckpoint
from safegene.workspace.digest import strict_json
from safegene.workspace.layout import cache_folder

MAX_FILES = 4096
MAX_JSON = 64 << 20  # bytes; a tokenizer.json of 250,000 words has 33 MB
_CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code", "kernel_config", "use_kernels")
_BUILT_IN = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "grouped_mm", "batched_mm")


def check_folder(root: Path) -> tuple[str, ...]:
    """The names of the checkpoint's files, sorted; no other file is opened, and of these only the shard index.

    Raises:
        CheckpointError: there is no such folder.
        UnsafeCheckpoint: the weights are pickles, the folder holds too many files, or a file of the checkpoint is a
            symlink (other than a link of the cache to weights), hard-linked from outside, or a device.
        FormatError: the shard index is malformed.
    """
    if root.is_symlink() or not root.is_dir():
        raise CheckpointError(f"expected a checkpoint folder, got none (or a symlink) at {root}")
    entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    if len(entries) > MAX_FILES:
        raise UnsafeCheckpoint(f"expected at most {MAX_FILES} files, got {len(entries)}, in {root}")
    files = {entry.name: entry for entry in entries if not entry.is_dir(follow_symlinks=False)}
    links = Counter(entry.inode() for entry in files.values())

    def check(name: str) -> None:
        _check_file(files[name], links[files[name].inode()], root)

    def index() -> dict[str, Any]:
        check(INDEX)
        return read_json(root / INDEX)

    refuse_pickles_alone(files, root)
    names = checkpoint_files(files, index)
    for name in names:
        check(name)
    return names


def is_weights_link(path: Path) -> bool:
    """Whether it is a link that the cache made in place of a copy of weights on this machine."""
    return path.is_symlink() and path.name.endswith(".safetensors") and path.parent.parent in _cached()


def _cached() -> tuple[Path, Path]:
    return cache_folder() / "checkpoints", cache_folder() / "parts"


def _check_file(entry: "os.DirEntry[str]", links_inside: int, root: Path) -> None:
    if entry.is_file() and is_weights_link(root / entry.name):
        return
    if entry.is_symlink() or not entry.is_file(follow_symlinks=False):
        raise UnsafeCheckpoint(
            f"expected ordinary files, got the link or device {entry.name!r}, in {root}",
            remedy="copy the file itself into the folder; a model of the Hub's cache is named hf://org/model",
        )
    if entry.stat(follow_symlinks=False).st_nlink > links_inside:
        raise UnsafeCheckpoint(
            f"expected files without links to them, got {entry.name!r}, hard-linked from elsewhere, in {root}",
            remedy="copy the file (`cp --reflink=auto`), so that it cannot be changed from outside the folder",
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object, of at most 64 MiB.

    Raises:
        CheckpointError: there is no such file.
        FormatError: it is not a JSON object.
        UnsafeCheckpoint: it is too large, or names code or kernels to load.
    """
    if not path.is_file():
        raise CheckpointError(f"expected {path.name}, got no such file, in {path.parent}")
    if (size := path.stat().st_size) > MAX_JSON:
        raise UnsafeCheckpoint(f"expected at most {MAX_JSON} bytes, got {size}, in {path}")
    value = strict_json(path.read_bytes(), where=str(path))
    if not isinstance(value, dict):
        raise FormatError(f"expected a JSON object, got {type(value).__name__}, in {path}")
    _refuse_code(value, path)
    return value


def _refuse_code(value: Any, path: Path) -> None:
    """Check keys at every depth, as transformers also reads them from nested configs."""
    queue = [value]
    while queue:
        item = queue.pop()
        for key, inner in item.items() if isinstance(item, dict) else ():
            kernel = key.strip("_").endswith(("implementation", "implementation_internal"))
            named = kernel and isinstance(inner, str) and inner not in _BUILT_IN
            if named or (kernel and isinstance(inner, dict)) or (key in _CODE_KEYS and inner):
                raise UnsafeCheckpoint(
                    f"expected no code to load, got {key} = {str(inner)[:80]!r}, in {path}",
                    remedy="safegene never runs a checkpoint's code; use an architecture that transformers implements",
                )
        queue += [v for v in (item.values() if isinstance(item, dict) else item) if isinstance(v, (dict, list))]
