"""Find the matrices of an architecture on the model without weights; nothing depends on a list of names.

The model is built on the meta device, so it takes no memory, and none of the checkpoint's code runs. transformers maps
stored names to parameters (renamings, experts merged into one parameter); the same mapping is read here. A matrix is
the weight of a linear layer or of its equivalents: Conv1D, experts in one parameter with three dimensions, routers.
Every other stored tensor is listed with its kind, so that nothing is left out silently.
"""

import inspect
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

from safegene.checkpoints.checkpoint import Checkpoint
from safegene.checkpoints.structure import Apply, Kind, Matrix, Structure, natural_key
from safegene.errors import CheckpointError, ShapeMismatch, TensorMissing
from safegene.text import visible

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Shapes = Mapping[str, tuple[int, ...]]
_KINDS: tuple[tuple[str, Kind], ...] = (
    (r"experts?\b|experts?_", "expert"),
    (r"router|(?:^|\.)gate\.|shared_expert_gate", "router"),
    (r"mamba|mixer|linear_attn|ssm|recurrent|conv|rwkv", "mixer"),
    (r"attn|attention", "attention"),
)
MORE_LAYERS = 1000  # than stored tensors; a config with more would take too long to build
_known: "WeakKeyDictionary[nn.Module, Structure]" = WeakKeyDictionary()


@dataclass(frozen=True)
class _Place:
    """Where a stored tensor goes: a parameter, and the expert and the first row or column within it."""

    parameter: str
    expert: int | None = None
    offset: tuple[int, int] = (0, 0)
    transposed: bool = False


def analyse(checkpoint: Checkpoint) -> Structure:
    """The structure of a checkpoint, from its config and the names and shapes in its headers.

    Raises:
        CheckpointError: transformers cannot build the model of that config.
        TensorMissing: a parameter of that model is not stored.
        ShapeMismatch: it is stored in another shape.
    """
    where = str(checkpoint.root)
    shapes = {name: spec.shape for name, spec in checkpoint.specs.items()}
    model = model_without_weights(checkpoint.config, len(shapes), where)
    require_complete(model, shapes, where)
    return find_structure(model, shapes)


def require_complete(model: nn.Module, shapes: Shapes, where: str) -> None:
    """Check that every parameter is stored, under one of its names where some are tied, and in its shape.

    Raises:
        TensorMissing: one is not.
        ShapeMismatch: it is stored in another shape.
    """
    places = stored_places(model, shapes)
    stored: dict[str, list[str]] = defaultdict(list)
    for name, place in places.items():
        stored[place.parameter].append(name)
    tied: dict[int, list[str]] = defaultdict(list)
    for name, tensor in model.state_dict(keep_vars=True).items():
        tied[id(tensor)].append(name)
    remedy = "use the config.json that belongs to these weights, or fetch the checkpoint again"
    for names in tied.values():
        if not any(name in stored for name in names):
            raise TensorMissing(
                f"expected the tensor {names[0]} of the config's model, got none, in {where}", remedy=remedy
            )
    for name, tensor in model.state_dict().items():
        whole = [one for one in stored[name] if places[one] == _Place(name)]
        if len(stored[name]) == 1 and whole and shapes[whole[0]] != tuple(tensor.shape):
            expected, got = list(tensor.shape), list(shapes[whole[0]])
            raise ShapeMismatch(
                f"expected shape {expected} of {whole[0]} by the config, got {got}, in {where}", remedy=remedy
            )


def structure_of(model: nn.Module) -> Structure:
    """The structure of a model in memory: as `remember` noted it, else with stored names equal to the model's own."""
    if model not in _known:
        remember(model, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    return _known[model]


def remember(model: nn.Module, shapes: Shapes, structure: Structure | None = None) -> None:
    """Note which stored names and shapes a model was loaded from, or its structure, where quantisation hides shapes."""
    _known[model] = structure or find_structure(model, shapes)


def text_config(config: "PretrainedConfig") -> "PretrainedConfig":
    """The config of the language model, also within a multimodal one."""
    return config.get_text_config(decoder=True)


def model_class(config: "PretrainedConfig") -> Any:
    """The auto class that loads a language model of that config, with its vision part where the config has one.

    Raises:
        CheckpointError: transformers has no such model.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and hasattr(config, "vision_config"):
        return AutoModelForImageTextToText
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    raise CheckpointError(f"expected a causal language model of transformers, got model_type {config.model_type!r}")


def resolved_config(config: Mapping[str, Any], tensors: int, where: str) -> "PretrainedConfig":
    """The config as transformers reads it, with every default filled in; no code of the checkpoint runs.

    Args:
        config: ``config.json``.
        tensors: number of stored tensors, which bounds the number of layers.
        where: the checkpoint, for messages.

    Raises:
        CheckpointError: transformers does not know the model type, or the values contradict each other.
    """
    from transformers import AutoConfig, PretrainedConfig

    model_type = config.get("model_type")
    layers = [
        value
        for part in (config, *(value for value in config.values() if isinstance(value, dict)))
        for key, value in part.items()
        if key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") and isinstance(value, int)
    ]
    if layers and max(layers) > tensors + MORE_LAYERS:
        raise CheckpointError(
            f"expected at most {tensors + MORE_LAYERS} layers for {tensors} tensors, got {max(layers)}, in {where}"
        )
    plain = {key: value for key, value in config.items() if key not in ("model_type", "num_labels", "id2label")}
    try:
        return AutoConfig.for_model(str(model_type), **PretrainedConfig._decode_special_floats(plain))
    except Exception as error:  # config classes check values in their own ways
        raise CheckpointError(
            f"expected a config that transformers can read, got {_short(error)}, in {where}/config.json",
            remedy="use the config.json that belongs to these weights",
        ) from None


def model_without_weights(config: Mapping[str, Any], tensors: int, where: str) -> "PreTrainedModel":
    """The model on the meta device. Arguments and errors as of `resolved_config`."""
    resolved = resolved_config(config, tensors, where)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = model_class(resolved).from_config(resolved, trust_remote_code=False)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"expected a config that describes a model, got {_short(error)}, in {where}/config.json",
            remedy="use the config.json that belongs to these weights",
        ) from None
    return model


def find_structure(model: nn.Module, shapes: Shapes) -> Structure:
    """The matrices of stored tensors of these shapes, and the kind of every other tensor.

    Args:
        model: the model that they belong to, with or without weights.
        shapes: stored name -> shape.
    """
    anatomy, places = _Anatomy(model), stored_places(model, shapes)
    matrices, others = dict[str, Matrix](), dict[str, Kind]()
    for name in sorted(shapes, key=natural_key):
        place = places.get(name)
        if place is None:
            others[name] = anatomy.kind_without_place(name)
        elif (kind := anatomy.other_kind(place.parameter)) is not None:
            others[name] = kind
        elif found := anatomy.matrices(name, shapes[name], place):
            matrices |= found
        else:
            others[name] = "other"
    return Structure(matrices=matrices, others=others)


def stored_places(model: nn.Module, names: Iterable[str]) -> dict[str, _Place]:
    """Stored name -> its place, by transformers' own mapping; names that the model does not hold are left out."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model) if hasattr(model, "config") else []
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    held, prefix = model.state_dict(), getattr(model, "base_model_prefix", "")
    places = dict[str, _Place]()
    merged: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in sorted(names, key=natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, held)
        if target not in held and name in held:
            target, pattern = rename_source_key(name, [], [], prefix, held)
        if target not in held:
            continue
        if pattern is None:
            places[name] = _Place(target)
        else:
            merged[target][pattern].append(name)
    for target, parts in merged.items():
        places |= _converted(target, parts, by_pattern[next(iter(parts))], tuple(held[target].shape))
    return places


def _converted(
    target: str, parts: Mapping[str, list[str]], converter: Any, shape: tuple[int, ...]
) -> dict[str, _Place]:
    """Places of the tensors that one converter merges into a parameter; none where it does anything else to them."""
    operations = [type(one).__name__ for one in converter.operations]
    listed = operations[:1] == ["MergeModulelist"] and converter.operations[0].dim == 0
    rest = converter.operations[1:] if listed else converter.operations
    names = [type(one).__name__ for one in rest]
    if names not in ([], ["Concatenate"], ["Transpose"]) or (not rest and not listed):
        return {}
    if names == ["Transpose"]:
        if listed or len(parts) > 1:
            return {}
        return {name: _Place(target, transposed=True) for group in parts.values() for name in group}
    patterns = [pattern for pattern in converter.source_patterns if pattern in parts]
    dim = (rest[0].dim % len(shape)) - (1 if listed else 0) if rest else 0
    if dim not in (0, 1) or (not listed and any(len(group) > 1 for group in parts.values())):
        return {}
    size = shape[dim + (1 if listed else 0)] // max(1, len(patterns)) if rest else 0
    places = {}
    for at, pattern in enumerate(patterns):
        offset = (at * size, 0) if dim == 0 else (0, at * size)
        for number, name in enumerate(parts[pattern]):
            places[name] = _Place(target, number if listed else None, offset)
    return places


class _Anatomy:
    """What a model's parameters are."""

    def __init__(self, model: nn.Module) -> None:
        self._owners = dict(model.named_modules(remove_duplicate=False))
        self._held = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self._positions = {name: at for at, name in enumerate(self._held)}
        self._buffers = {name for name, _ in model.named_buffers()}
        self._text, self._head = _text_prefixes(model), _head(model)

    def matrices(self, name: str, shape: tuple[int, ...], place: _Place) -> dict[str, Matrix]:
        """The matrices of one stored tensor; none where its form is not understood."""
        held = self._held[place.parameter]
        slices: list[tuple[str, int | None, int | None]] = []
        if len(shape) == 3 and len(held) == 3 and shape[0] == held[0]:
            slices = [(f"{name}.{i}", i, i) for i in range(shape[0])]
        elif len(shape) == 2 and (len(held) == 2) == (place.expert is None):
            slices = [(name, None, place.expert)]
        rows, columns = shape[-2:]
        turned = place.transposed and (rows, columns) != held[-2:]
        covers = (columns, rows) if turned else (rows, columns)
        if any(first + size > most for first, size, most in zip(place.offset, covers, held[-2:], strict=True)):
            return {}
        apply, kind = self._apply(place, shape == held and not place.transposed), _matrix_kind(place.parameter)
        return {
            matrix: Matrix(
                shape=(rows, columns),
                tensor=name,
                index=index,
                kind=kind,
                parameter=place.parameter,
                position=self._positions[place.parameter],
                apply=apply,
                expert=expert,
                offset=place.offset,
                turned=turned,
            )
            for matrix, index, expert in slices
        }

    def _apply(self, place: _Place, whole: bool) -> Apply:
        owner = self._owner(place.parameter)
        if whole and isinstance(owner, nn.Linear):
            more = type(owner).forward is not nn.Linear.forward and _matrix_kind(place.parameter) == "router"
            return "parameter" if more else "linear"  # a router may return more than its product
        return "transposed" if whole and _is_conv1d(owner) else "parameter"

    def kind_without_place(self, name: str) -> Kind:
        """The kind of a stored tensor that is no parameter of the model."""
        recomputed = name in self._buffers or name.endswith((".inv_freq", ".masked_bias"))
        return "buffer" if recomputed else "other"

    def other_kind(self, parameter: str) -> Kind | None:
        """The kind of a parameter that carries no low-rank change; None for one that can."""
        owner, leaf = self._owner(parameter), parameter.rpartition(".")[2]
        if self._text is not None and not parameter.startswith(self._text) and parameter != self._head:
            return "vision"
        if isinstance(owner, nn.Embedding):
            return "embedding"
        if parameter == self._head:
            return "head"
        if leaf.endswith("bias"):
            return "bias"
        if isinstance(owner, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            return "convolution"
        if "norm" in type(owner).__name__.lower():
            return "norm"
        return None if self._is_matrix(owner, parameter) else "state"

    def _is_matrix(self, owner: nn.Module | None, parameter: str) -> bool:
        """Whether a parameter is the weight of a linear map: of a linear layer, of experts, or of a router."""
        shape = self._held[parameter]
        if self._read_uncalled(parameter):
            return False
        if isinstance(owner, nn.Linear) or _is_conv1d(owner) or len(shape) == 2:
            return parameter.endswith(".weight")
        return len(shape) == 3 and min(shape[1:]) > 1

    def _read_uncalled(self, parameter: str) -> bool:
        """Whether the code around a layer uses its weight without a call of the layer, so no adapter can change it.

        Either the weight is multiplied there, or it is read and the layer is never called.
        """
        outer, _, leaf = parameter.rpartition(".")[0].rpartition(".")
        source, weight = _source(cast(Any, type(self._owners.get(outer)))), rf"self\.{re.escape(leaf)}\.weight"
        multiplied = re.search(rf"{weight}\s*@|@\s*{weight}|linear\([^()]*{weight}", source)
        return bool(multiplied) or (re.search(weight, source) is not None and f"self.{leaf}(" not in source)

    def _owner(self, parameter: str) -> nn.Module | None:
        return self._owners.get(parameter.rpartition(".")[0])


@cache
def _source(kind: type) -> str:
    """The source code of a class; empty where there is none."""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""


def _is_conv1d(module: nn.Module | None) -> bool:
    """Whether it is the Conv1D of transformers: a linear layer that holds its weight as (in, out)."""
    return type(module).__name__ == "Conv1D"


def _matrix_kind(parameter: str) -> Kind:
    for pattern, kind in _KINDS:
        if re.search(pattern, parameter):
            return kind
    return "mlp"


def _text_prefixes(model: nn.Module) -> tuple[str, ...] | None:
    """Prefixes of the language model's parameters within a multimodal model; None where there is nothing else."""
    config = getattr(model, "config", None)
    if config is None or text_config(config) is config:
        return None
    decoder = _call(model, "get_decoder")
    return tuple(f"{name}." for name, module in model.named_modules() if module is decoder and name) or None


def _head(model: nn.Module) -> str | None:
    """The name of the output embedding's weight; None where the model has none."""
    output = _call(model, "get_output_embeddings")
    return next((f"{name}.weight" for name, module in model.named_modules() if module is output), None)


def _call(model: nn.Module, method: str) -> Any:
    return cast(Any, getattr(model, method))() if hasattr(model, method) else None


def _short(error: Exception) -> str:
    return visible(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
