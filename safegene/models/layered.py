"""A causal language model that holds one decoder layer's weights at a time, for models larger than the memory.

The model is built without weights. Embeddings, the last norm and the head are read at once. The tensors of a layer are
read from the safetensors files when its forward pass begins and dropped when it ends. So the peak is, at 4 bytes a
parameter, the embeddings, the head, the largest layer (tests count it) and the activations; experts that transformers
merges into one parameter take their space twice while it does. Nothing is copied on disk.

A layer is the first module on a parameter's path that a number names, such as ``model.layers.3``. transformers maps
stored names to parameters and merges experts, as in `from_pretrained`. All is computed in float32, and the changes of
adapters are added to the weights in float32, where they are exact: this is the reference, not the served dtype.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from safegene.checkpoints.checkpoint import Checkpoint, open_checkpoint
from safegene.checkpoints.export.adapter import read_change
from safegene.checkpoints.structure import by_stored_name
from safegene.errors import CheckpointError, TensorMissing
from safegene.models.loading import quiet
from safegene.models.patching import add_patch, matrix_of
from safegene.models.structure import model_class, remember, resolved_config, structure_of
from safegene.vectors.linalg import LowRank, concat
from safegene.workspace.credentials import without_credentials

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RESIDENT = ""  # the group of the tensors outside the layers


def layered_model(root: Path, adapters: Sequence[Path] = (), *, device: str = "cpu") -> "PreTrainedModel":
    """The model of a full checkpoint, with adapters added; its layers are read from disk at every forward pass.

    No code of the checkpoint is run, and no network is used.

    Args:
        root: a full checkpoint; its files must stay where they are as long as the model is used.
        adapters: folders of PEFT LoRA adapters.
        device: where layers are loaded to.

    Raises:
        UnsafeCheckpoint: see `open_checkpoint`.
        CheckpointError: the architecture cannot be built, or has no layers.
        TensorMissing: the checkpoint lacks a weight of the model or has an extra one; for a layer, at the first
            forward pass. Or an adapter changes a matrix that the model lacks.
    """
    checkpoint = open_checkpoint(root)
    model = _empty_model(checkpoint)
    layers = _Layers(model, checkpoint, adapters, device)
    layers.load(RESIDENT)
    for path in layers.paths:
        layer = model.get_submodule(path)
        layer.register_forward_pre_hook(partial(layers.before, path))
        layer.register_forward_hook(partial(layers.after, path), always_call=True)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
    return model


class _Layers:
    """The weights of a model on disk, by layer, and the model that they are loaded into."""

    def __init__(self, model: "PreTrainedModel", checkpoint: Checkpoint, adapters: Sequence[Path], device: str) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping

        self.model, self.checkpoint, self.device = model, checkpoint, device
        self.mapping = get_model_conversion_mapping(model)
        self.stored: dict[str, list[str]] = defaultdict(list)
        for name, parameter in _parameters(model, checkpoint.specs, self.mapping).items():
            self.stored[_layer_path(parameter)].append(name)
        self.changes: dict[str, dict[str, LowRank]] = defaultdict(dict)
        for name, change in _changes(model, adapters).items():
            self.changes[_layer_path(matrix_of(model, name, change.shape).parameter)][name] = change
        self.empty: dict[str, dict[str, nn.Parameter]] = defaultdict(dict)
        for name, empty in model.named_parameters():
            self.empty[_layer_path(name)][name] = empty

    @property
    def paths(self) -> list[str]:
        """Where the layers are in the model."""
        return [path for path in self.empty if path != RESIDENT]

    def load(self, path: str) -> None:
        """Read the tensors of a layer, or those outside the layers, into the model."""
        missing = self._read(self.stored[path])
        if path == RESIDENT:
            self.model.tie_weights(missing_keys=missing, recompute_mapping=False)
        absent = [name for name in self.empty[path] if self.model.get_parameter(name).device.type == "meta"]
        if absent:
            raise TensorMissing(f"expected every weight of the model, got none of {absent[:3]}, in {self._where}")
        add_patch(self.model, self.changes[path])

    def before(self, path: str, *inputs: Any) -> None:
        """Hook before the forward pass of a layer."""
        self.load(path)

    def after(self, path: str, *outputs: Any) -> None:
        """Hook after it: the layer's weights are dropped."""
        for name, empty in self.empty[path].items():
            owner, _, attribute = name.rpartition(".")
            setattr(self.model.get_submodule(owner), attribute, empty)

    @property
    def _where(self) -> str:
        return str(self.checkpoint.root)

    def _read(self, names: Sequence[str]) -> set[str]:
        """Load tensors by transformers' own mapping; the parameters that are missing after it."""
        from safetensors import safe_open
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        config = LoadStateDictConfig(
            dtype=torch.float32, device_map={"": self.device}, weight_mapping=self.mapping, use_safetensors=True
        )
        shards = self.checkpoint.shards
        with ExitStack() as files, quiet():
            opened = {
                shard: files.enter_context(safe_open(self.checkpoint.root / shard, framework="pt"))
                for shard in sorted({shards[name] for name in names})
            }
            slices = {name: opened[shards[name]].get_slice(name) for name in names}
            info, _ = convert_and_load_state_dict_in_model(self.model, slices, config)
        problems = [*info.mismatched_keys, *info.conversion_errors.values(), *info.error_msgs]
        if unexpected := sorted(info.unexpected_keys):
            self.model._adjust_missing_and_unexpected_keys(info)
            problems += sorted(info.unexpected_keys & set(unexpected))
        if problems:
            raise TensorMissing(f"expected only weights of the model, got {str(problems[:2])[:300]}, in {self._where}")
        self.model.requires_grad_(False)
        return set(info.missing_keys)


def _empty_model(checkpoint: Checkpoint) -> "PreTrainedModel":
    """The model without weights (they are on the meta device), with the buffers that its code computes."""
    from accelerate import init_empty_weights

    where = str(checkpoint.root)
    config = resolved_config(checkpoint.config, len(checkpoint.specs), where)
    try:
        with quiet(), without_credentials(), init_empty_weights(include_buffers=False):
            model: PreTrainedModel = model_class(config).from_config(
                config, dtype=torch.float32, trust_remote_code=False
            )
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        got = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise CheckpointError(f"expected a config that describes a model, got {got}, in {where}/config.json") from None
    remember(model, {name: spec.shape for name, spec in checkpoint.specs.items()})
    return model.eval().requires_grad_(False)


def _changes(model: "PreTrainedModel", adapters: Sequence[Path]) -> dict[str, LowRank]:
    """Matrix name -> the sum of its changes in all adapters."""
    parts: dict[str, list[LowRank]] = defaultdict(list)
    for folder in adapters:
        for name, change in by_stored_name(structure_of(model).matrices, read_change(folder)).items():
            parts[name].append(change)
    return {name: concat(changes) for name, changes in parts.items()}


def _parameters(model: "PreTrainedModel", names: Iterable[str], mapping: Sequence[Any]) -> dict[str, str]:
    """Stored name -> the parameter of the model that it becomes, alone or with others, by transformers' mapping."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
    held, parameters = model.state_dict(), {}
    for name in names:
        parameters[name], _ = rename_source_key(name, renamings, converters, model.base_model_prefix, held)
        if parameters[name] not in held and name in held:
            parameters[name], _ = rename_source_key(name, [], [], model.base_model_prefix, held)
    return parameters


def _layer_path(name: str) -> str:
    """The path of the layer around a parameter, up to the first number; `RESIDENT` for one in no layer."""
    parts = name.split(".")
    for at, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: at + 1])
    return RESIDENT
