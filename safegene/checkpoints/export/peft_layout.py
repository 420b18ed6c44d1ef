"""Where PEFT holds the changes of a model's matrices, and in which layout.

The whole weight of a linear layer is a target module, unless PEFT would take the module's name for that of an expert:
for several mixture-of-experts architectures it rewrites ``mlp.*_proj`` to the experts' parameters and drops what does
not fit there. Such a weight, fused rows, routers and experts are target parameters. PEFT builds the adapter on the
model without weights, so that names and shapes are PEFT's own.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from safegene.checkpoints.structure import Matrix
from safegene.errors import CheckpointError, TensorMissing
from safegene.vectors.linalg import LowRank, Patch, concat

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFIX = "base_model.model."
Slices = dict[int | None, LowRank]
"""Index of an expert, or None for a parameter with two dimensions -> its change."""


class NotCarried(CheckpointError):
    """PEFT has no place for a change, or would read it otherwise. The message is the reason."""


@dataclass(frozen=True)
class Targets:
    """What an adapter changes.

    Attributes:
        modules: path of a linear layer -> its change (out, in).
        parameters: name of a parameter -> its changes, each of the shape of the parameter or of one expert in it.
        transposed: whether a layer is a Conv1D, which holds its weight as (in, out).
    """

    modules: dict[str, LowRank] = field(default_factory=dict)
    parameters: dict[str, Slices] = field(default_factory=dict)
    transposed: bool = False

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max(change.rank for change in (*self.modules.values(), *self._slices()))

    def _slices(self) -> Iterable[LowRank]:
        return (change for slices in self.parameters.values() for change in slices.values())


def find_targets(changes: Patch, matrices: Mapping[str, Matrix], model: "PreTrainedModel | None") -> Targets:
    """What PEFT must adapt to make these changes.

    Args:
        changes: matrix name -> change, of the matrix's stored shape.
        matrices: matrix name -> where the model holds it; another name, such as that of the head, must be of the form
            ``<module>.weight`` and a linear layer.
        model: without weights; None where every change is of a linear layer and PEFT renames none.

    Raises:
        CheckpointError: a change is of no matrix.
    """
    by_parameter: dict[str, list[tuple[LowRank, Matrix | None]]] = defaultdict(list)
    for name in sorted(changes):
        matrix = matrices.get(name)
        if matrix is None:
            _require_linear(name, changes[name], model)
        by_parameter[matrix.parameter if matrix else name].append((changes[name], matrix))
    modules: dict[str, LowRank] = {}
    parameters: dict[str, Slices] = {}
    transposed = False
    for parameter, members in by_parameter.items():
        (change, matrix), *more = members
        if not more and (matrix is None or matrix.apply != "parameter"):
            turned = matrix is not None and matrix.apply == "transposed"
            modules[parameter.removesuffix(".weight")] = change.transposed() if turned else change
            transposed |= turned
        else:
            parameters[parameter] = _slices(parameter, members, model)
    if model is not None and converts_names(model):
        for module in renamed_modules(model, modules):
            parameters[f"{module}.weight"] = {None: modules.pop(module)}
    return Targets(modules, parameters, transposed)


def _require_linear(name: str, change: LowRank, model: "PreTrainedModel | None") -> None:
    module, _, leaf = name.rpartition(".")
    found = dict(model.named_modules()).get(module) if model is not None else None
    fits = isinstance(found, nn.Linear) and tuple(found.weight.shape) == change.shape
    if leaf != "weight" or (model is not None and not fits):
        raise CheckpointError(f"expected changes of the model's matrices, got one of {name} {list(change.shape)}")


def converts_names(model: "PreTrainedModel") -> bool:
    """Whether transformers, and so PEFT, converts the names of this architecture's checkpoints."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    return get_checkpoint_conversion_mapping(model.config.model_type) is not None


def renamed_modules(model: "PreTrainedModel", modules: Iterable[str]) -> list[str]:
    """The modules that PEFT would take for parts of the experts of this architecture, by the end of their names."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    def kept(leaf: str) -> bool:
        config = LoraConfig(target_modules=[leaf])
        try:
            convert_peft_config_for_transformers(config, model, None)
        except ValueError:  # a part of a fused parameter, without the others
            return False
        return set(config.target_modules) == {leaf}

    names = list(modules)
    renamed = {leaf for leaf in {name.rpartition(".")[2] for name in names} if not kept(leaf)}
    return [name for name in names if name.rpartition(".")[2] in renamed]


def adapter_tensors(model: "PreTrainedModel", config: Mapping[str, Any], targets: Targets) -> dict[str, Tensor]:
    """Name in ``adapter_model.safetensors`` -> tensor, float32, as PEFT will look for them on this model.

    Args:
        model: without weights; it is changed.
        config: ``adapter_config.json``; its rank is at least that of each change.
        targets: the changes.

    Raises:
        NotCarried: PEFT cannot build the adapter, or would hold something else in it.
    """
    from peft import PeftConfig, get_peft_model
    from peft.tuners.lora.layer import LoraLayer
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            peft = get_peft_model(model, PeftConfig.from_peft_type(**config), low_cpu_mem_usage=True)
            layers = [(name, one) for name, one in peft.named_modules() if isinstance(one, LoraLayer)]
            tensors: dict[str, Tensor] = {}
            for name, layer in layers:
                down, up = _factors(name.removeprefix(PREFIX), layer, targets, config["r"])
                tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
            read = convert_peft_adapter_state_dict_for_transformers(
                model=peft, peft_config=peft.active_peft_config, adapter_state_dict=dict(tensors)
            )
        except NotCarried:
            raise
        except Exception as error:  # peft and transformers raise errors of every class here
            raise NotCarried(f"PEFT cannot build it: {' '.join(str(error).split())[:200]}") from error
    if len(layers) != len(targets.modules) + len(targets.parameters):
        raise NotCarried(
            f"PEFT adapts {len(layers)} places instead of {len(targets.modules) + len(targets.parameters)}"
        )
    if read.keys() != tensors.keys() or any(not torch.equal(read[key], tensors[key]) for key in tensors):
        raise NotCarried("PEFT would convert its names for this architecture")
    return tensors


def _factors(name: str, layer: Any, targets: Targets, rank: int) -> tuple[Tensor, Tensor]:
    """lora_A and lora_B of one layer of PEFT.

    For a parameter (E, rows, columns) of experts these are (r E, in) and (out, r E), which PEFT reads as (E, r, in) and
    (out, r, E); in and out are columns and rows, or the reverse where the layer multiplies from the left.
    """
    parameter = getattr(layer, "parameter_name", None)
    path = name.replace(".base_layer", "")
    place = path if parameter is None else f"{path}.{parameter}"
    if parameter is None and place in targets.modules:
        change = padded(targets.modules[place], rank)
        down, up = change.down, change.up
    elif place in targets.parameters:
        slices = targets.parameters[place]
        if None in slices:
            change = padded(slices[None], rank)
            down, up = change.down, change.up
        else:
            down, up = _expert_factors(slices, layer, rank)
    else:
        raise NotCarried(f"PEFT adapts {place} too")
    held = (tuple(layer.lora_A["default"].weight.shape), tuple(layer.lora_B["default"].weight.shape))
    if (tuple(down.shape), tuple(up.shape)) != held:
        raise NotCarried(f"PEFT holds {held[0]} and {held[1]} for {place}, not {tuple(down.shape)}, {tuple(up.shape)}")
    return tuple(factor.detach().cpu().float().contiguous() for factor in (down, up))  # type: ignore[return-value]


def _expert_factors(slices: Slices, layer: Any, rank: int) -> tuple[Tensor, Tensor]:
    experts = layer.num_experts
    first = next(iter(slices.values()))
    if experts == 1:
        raise NotCarried("PEFT has no layout for a parameter of one expert")
    empty = LowRank(first.up.new_zeros(first.shape[0], 1), first.down.new_zeros(1, first.shape[1]))
    changes = [padded(slices.get(expert, empty), rank) for expert in range(experts)]
    if not layer._did_swap_in_out_features:
        changes = [change.transposed() for change in changes]
    down = torch.cat([change.down for change in changes])
    up = torch.stack([change.up for change in changes], dim=2).flatten(1)
    return down, up


def padded(change: LowRank, rank: int) -> LowRank:
    """The same change with factors (out, rank) and (rank, in), zeros after its own."""
    more = rank - change.rank
    return LowRank(functional.pad(change.up, (0, more)), functional.pad(change.down, (0, 0, 0, more)))


def _slices(
    parameter: str, members: Iterable[tuple[LowRank, Matrix | None]], model: "PreTrainedModel | None"
) -> Slices:
    """The changes of one parameter, each part put at its place; parts that share an expert are concatenated."""
    if model is None:
        raise TensorMissing(f"expected the model, to change a part of {parameter}, got none")
    shape = tuple(model.get_parameter(parameter).shape)[-2:]
    parts: dict[int | None, list[LowRank]] = defaultdict(list)
    for change, matrix in members:
        assert matrix is not None
        parts[matrix.expert].append(_placed(change.transposed() if matrix.turned else change, matrix.offset, shape))
    return {expert: concat(changes) for expert, changes in parts.items()}


def _placed(change: LowRank, offset: tuple[int, int], shape: tuple[int, ...]) -> LowRank:
    """The change within a matrix of that shape, zero around it."""
    (row, column), (rows, columns) = offset, change.shape
    up = functional.pad(change.up, (0, 0, row, shape[0] - row - rows))
    return LowRank(up, functional.pad(change.down, (column, shape[1] - column - columns)))
