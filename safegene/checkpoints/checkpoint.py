"""A full checkpoint in the Hugging Face layout: verified by its headers, read one tensor at a time.

A folder MUST hold safetensors weights, a complete shard index where there are several shards, and a ``config.json`` of
an allowed model type without code, kernels or quantisation; no file of it may be a link to the outside. A folder that
breaks a rule is refused before a weight is read. Other files (see `safegene.checkpoints.wanted`) are never opened.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safegene.checkpoints.header import TensorSpec, read_header
from safegene.checkpoints.unsafe import check_folder, read_json
from safegene.checkpoints.values import FLOATS, check_values, read_tensor
from safegene.checkpoints.wanted import INDEX, WEIGHTS, weight_map
from safegene.errors import CheckpointError, FormatError, TensorMissing, UnsafeCheckpoint
from safegene.workspace.digest import digest_files, digest_range

if TYPE_CHECKING:
    import torch

MAX_LABELS = 10_000
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True)
class Checkpoint:
    """A full checkpoint whose headers were verified.

    Attributes:
        root: its folder.
        specs: tensor name -> its place in its shard.
        shards: tensor name -> file name.
        config: ``config.json``.
        files: every file of the checkpoint, sorted.
    """

    root: Path
    specs: Mapping[str, TensorSpec]
    shards: Mapping[str, str]
    config: Mapping[str, Any]
    files: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        """Digest of every file; reads all bytes once."""
        return digest_files(self.root, self.files)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape, sorted by name."""
        return {name: spec.shape for name, spec in sorted(self.specs.items())}

    @property
    def parameters(self) -> int:
        """How many numbers are stored; a stored copy of tied embeddings counts."""
        return sum(spec.numel for spec in self.specs.values())

    def tensor_digest(self, name: str) -> str:
        """Digest of the tensor's bytes, which are read in blocks.

        Raises:
            TensorMissing: there is no such tensor.
        """
        spec = self._spec(name)
        return digest_range(self.root / self.shards[name], spec.start, spec.end)

    def tensor(self, name: str) -> "torch.Tensor":
        """The tensor in its stored dtype, on the CPU; no other part of the shard is read.

        Raises:
            TensorMissing: there is no such tensor.
        """
        spec = self._spec(name)
        return read_tensor(self.root / self.shards[name], spec)

    def place(self, name: str) -> tuple[TensorSpec, str]:
        """The place of a tensor, or of a matrix that is a slice of one, in its shard; and the shard's file name.

        Raises:
            TensorMissing: there is neither.
        """
        return (self.specs[name], self.shards[name]) if name in self.specs else self._matrix(name)

    def matrix_shape(self, name: str) -> tuple[int, int]:
        """(rows, columns) of a matrix as stored: of a tensor with two dimensions, or of slice i, ``<tensor>.<i>``.

        Raises:
            TensorMissing: there is no such matrix.
        """
        return _two(self._matrix(name)[0].shape)

    def matrix(self, name: str) -> "torch.Tensor":
        """(rows, columns): the matrix in its stored dtype, on the CPU; no other slice of its tensor is read.

        Raises:
            TensorMissing: there is no such matrix.
        """
        spec, shard = self._matrix(name)
        return read_tensor(self.root / shard, spec)

    def _matrix(self, name: str) -> tuple[TensorSpec, str]:
        if name in self.specs and len(self.specs[name].shape) == 2:
            return self.specs[name], self.shards[name]
        tensor, _, index = name.rpartition(".")
        whole = self.specs.get(tensor)
        if whole is None or len(whole.shape) != 3 or not index.isdecimal() or int(index) >= whole.shape[0]:
            raise TensorMissing(f"expected the matrix {name}, got none of that name, in {self.root}")
        size = (whole.end - whole.start) // whole.shape[0]
        start = whole.start + int(index) * size
        return TensorSpec(name, whole.dtype, whole.shape[1:], start, start + size), self.shards[tensor]

    def _spec(self, name: str) -> TensorSpec:
        if name not in self.specs:
            raise TensorMissing(f"expected the tensor {name}, got none of that name, in {self.root}")
        return self.specs[name]


def open_checkpoint(root: Path, *, model_types: Sequence[str] | None = None) -> Checkpoint:
    """Verify a folder's files, config, index and headers; no weight is read.

    Args:
        root: the folder.
        model_types: the allowed values of ``model_type``; None allows all.

    Raises:
        UnsafeCheckpoint: opening it could run code, leave the folder or exhaust memory.
        FormatError: a file is malformed, or index and shards disagree.
        CheckpointError: there are no weights, or they are quantised.
    """
    files = check_folder(root)
    config = read_config(root, model_types)
    for name in files:
        if name.endswith("config.json"):
            read_json(root / name)
    shards = _shards(root, files)
    specs: dict[str, TensorSpec] = {}
    for shard in sorted(set(shards.values())):
        specs |= _shard_specs(root / shard, shard, shards)
    for name, spec in specs.items():
        if spec.dtype not in FLOATS:
            raise CheckpointError(
                f"expected weights of {', '.join(FLOATS)}, got {spec.dtype} for {name}, in {root / shards[name]}",
                remedy="use the checkpoint that was not quantised",
            )
    return Checkpoint(root, specs, shards, config, files)


def check_finite(checkpoint: Checkpoint) -> None:
    """Read every weight once and refuse NaN, infinity and numbers that no weight has.

    Raises:
        CheckpointError: names the first tensor that holds one.
    """
    for name, spec in checkpoint.specs.items():
        check_values(checkpoint.root / checkpoint.shards[name], [spec])


def read_config(root: Path, model_types: Sequence[str] | None) -> dict[str, Any]:
    """``config.json`` of an allowed model type.

    Raises:
        UnsafeCheckpoint: the model type is not allowed, or loading the config would exhaust memory.
        CheckpointError: there is no config, or the weights are quantised.
    """
    path = root / "config.json"
    config = read_json(path)
    if model_types is not None and config.get("model_type") not in model_types:
        raise UnsafeCheckpoint(
            f"expected a model_type of {list(model_types)}, got {config.get('model_type')!r}, in {path}",
            remedy="if you trust that architecture in transformers, add it to fetch.model_types in params.yaml",
        )
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        labels = part.get("num_labels", 0)
        if not isinstance(labels, int) or labels > MAX_LABELS:
            raise UnsafeCheckpoint(
                f"expected at most {MAX_LABELS} labels, which transformers names one by one, got num_labels = "
                f"{str(labels)[:40]}, in {path}",
                remedy="remove num_labels from config.json: a language model has none",
            )
    if config.get("quantization_config"):
        raise CheckpointError(
            f"expected weights that are not quantised, got a quantization_config, in {path}",
            remedy="use the checkpoint that was not quantised",
        )
    return config


def layer_of(name: str) -> int | None:
    """The index of the layer that a tensor belongs to: the first number in its name; None outside the layers."""
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def _two(shape: tuple[int, ...]) -> tuple[int, int]:
    rows, columns = shape
    return rows, columns


def _shards(root: Path, files: Sequence[str]) -> dict[str, str]:
    present = {name for name in files if name.endswith(".safetensors")}
    if WEIGHTS in present and INDEX in files:
        raise FormatError(f"expected {WEIGHTS} or {INDEX}, got both, which is ambiguous, in {root}")
    if INDEX in files:
        shards = weight_map(read_json(root / INDEX), root / INDEX)
    elif WEIGHTS in present:
        shards = dict.fromkeys(read_header(root / WEIGHTS), WEIGHTS)
    else:
        raise CheckpointError(f"expected {WEIGHTS} or {INDEX}, got {sorted(present) or 'no weights'}, in {root}")
    named = set(shards.values()) or {WEIGHTS}
    if missing := sorted(named - present):
        raise FormatError(f"expected the shard {missing[0]}, got no such file, in {root}", remedy="fetch it again")
    if extra := sorted(present - named):
        raise FormatError(f"expected only shards that the index names, got also {extra[0]}, in {root}")
    return shards


def _shard_specs(path: Path, shard: str, shards: Mapping[str, str]) -> dict[str, TensorSpec]:
    specs = read_header(path)
    if extra := [name for name in specs if shards.get(name) != shard]:
        raise FormatError(f"expected only tensors that the index places there, got {extra[0]}, in {path}")
    if missing := [name for name, home in shards.items() if home == shard and name not in specs]:
        raise FormatError(f"expected the tensor {missing[0]}, which the index places there, got none, in {path}")
    return specs
