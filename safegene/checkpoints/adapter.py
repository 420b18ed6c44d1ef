"""A PEFT LoRA adapter, read as low-rank changes ``dW = scale * B A``, one per matrix.

Rank, alpha, their patterns and rsLoRA's scale are read as PEFT reads them; `safegene.models.adapter_fit` compares the
modules with those that the config names. An adapter with anything that is not a sum of low-rank changes of linear
layers is refused: DoRA, biases, fully saved modules, embeddings and the head, and initialisations that change the base
weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import ConfigDict, StringConstraints

from safegene.checkpoints.adapter_targets import MERGE, PREFIX, LoraTargets, canonical_specs, in_file_order
from safegene.checkpoints.header import TensorSpec, read_header
from safegene.checkpoints.unsafe import check_folder, read_json
from safegene.checkpoints.values import read_tensor
from safegene.checkpoints.wanted import ADAPTER_CONFIG as CONFIG
from safegene.checkpoints.wanted import ADAPTER_WEIGHTS as WEIGHTS
from safegene.errors import CheckpointError, FormatError, ShapeMismatch, TensorMissing
from safegene.workspace.fields import Positive, PositiveFloat
from safegene.workspace.parsing import Strict, parse

if TYPE_CHECKING:
    from safegene.vectors.linalg import Patch

_REFUSED = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
)
_INITIALISED = (True, False, None, "gaussian", "eva", "orthogonal")  # these leave the base weights as they are
ModulePattern = Annotated[str, StringConstraints(pattern=r"^\^?[A-Za-z0-9_.-]+$")]


class LoraScale(Strict):
    """The keys of ``adapter_config.json`` that rank and scale of a module depend on.

    PEFT reads the keys of a pattern as regular expressions for the end of a module's name. They come from an untrusted
    file, so only literal names are accepted, with or without a leading ``^``.
    """

    model_config = ConfigDict(extra="ignore")

    r: Positive
    lora_alpha: PositiveFloat
    rank_pattern: dict[ModulePattern, Positive] | None = None
    alpha_pattern: dict[ModulePattern, PositiveFloat] | None = None
    use_rslora: bool | None = None

    def rank(self, module: str) -> int:
        """The rank of a module."""
        return _of_module(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        """Alpha / r of a module; alpha / sqrt(r) for rsLoRA."""
        rank = self.rank(module)
        return float(_of_module(self.alpha_pattern, module, self.lora_alpha) / (rank**0.5 if self.use_rslora else rank))


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter whose config and header were verified.

    Attributes:
        root: its folder.
        base_model_name: the model that the config names; a claim, not verified.
        scales: rank and scale of each module.
        targets: which modules the config names.
        specs: tensor name as PEFT writes it -> its place in ``adapter_model.safetensors``.
        is_plain: whether the file spells its names so, and no regular expression is needed to match the modules.
    """

    root: Path
    base_model_name: str
    scales: LoraScale
    targets: LoraTargets
    specs: Mapping[str, TensorSpec]
    is_plain: bool

    @property
    def rank(self) -> int:
        """The largest rank of a matrix."""
        return max(rank for _, rank, _ in self.shapes.values())

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Matrix name as in the base's safetensors -> (out, r, in)."""
        shapes = {}
        for module in self.modules:
            down, up = self._factors(module)
            shapes[f"{module}.weight"] = (up.shape[0], up.shape[1], down.shape[1])
        return shapes

    @property
    def modules(self) -> tuple[str, ...]:
        """The adapted modules, sorted."""
        return tuple(sorted({name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in self.specs}))

    @property
    def parameters(self) -> int:
        """How many numbers the adapter has."""
        return sum(spec.numel for spec in self.specs.values())

    def patch(self) -> "Patch":
        """Matrix name -> change in fp32: up (out, r) = scale * B, down (r, in) = A."""
        from safegene.vectors.linalg import LowRank

        patch = {}
        for module in self.modules:
            down, up = (read_tensor(self.root / WEIGHTS, spec).float() for spec in self._factors(module))
            patch[f"{module}.weight"] = LowRank(up * self.scales.scale(module), down)
        return patch

    def _factors(self, module: str) -> tuple[TensorSpec, TensorSpec]:
        names = [f"{PREFIX}{module}.lora_{side}.weight" for side in "AB"]
        for name in names:
            if name not in self.specs:
                raise TensorMissing(f"expected the tensor {name}, got only its other half, in {self.root / WEIGHTS}")
        return self.specs[names[0]], self.specs[names[1]]


def open_adapter(root: Path) -> Adapter:
    """Verify an adapter's folder, config and header; no weight is read.

    Raises:
        UnsafeCheckpoint: opening it could run code, leave the folder or exhaust memory.
        CheckpointError: it is not a plain LoRA adapter.
        FormatError: the config is malformed, or the folder holds other weights too.
        ShapeMismatch: the two factors of a module, or factors and config, differ in rank.
    """
    files = check_folder(root)
    config = read_json(root / CONFIG)
    _require_plain(config, root / CONFIG)
    scales = parse(LoraScale, config, where=str(root / CONFIG))
    scales = scales.model_copy(
        update={
            "rank_pattern": in_file_order(scales.rank_pattern, config.get("rank_pattern")),
            "alpha_pattern": in_file_order(scales.alpha_pattern, config.get("alpha_pattern")),
        }
    )
    targets = parse(LoraTargets, config, where=str(root / CONFIG))
    if WEIGHTS not in files:
        raise CheckpointError(f"expected {WEIGHTS}, got no such file, in {root}")
    if extra := sorted(name for name in files if name.endswith(".safetensors") and name != WEIGHTS):
        raise FormatError(f"expected only {WEIGHTS}, got also {extra[0]}, in {root}")
    specs = read_header(root / WEIGHTS)
    canonical = canonical_specs(specs, root / WEIGHTS)
    plain = targets.is_literal and set(canonical) == set(specs)
    adapter = Adapter(root, str(config.get("base_model_name_or_path") or ""), scales, targets, canonical, plain)
    _require_ranks(adapter)
    return adapter


T = TypeVar("T", int, float)


def _of_module(pattern: Mapping[str, T] | None, module: str, default: T) -> T:
    """The value of the first key that names the module or the end of its name, as PEFT matches it."""
    for key, value in (pattern or {}).items():
        literal = key.removeprefix("^")
        if module == literal or (literal == key and module.endswith("." + key)):
            return value
    return default


def _require_plain(config: Mapping[str, Any], path: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"expected peft_type 'LORA', got {config.get('peft_type')!r}, in {path}")
    for key in _REFUSED:
        if config.get(key):
            raise CheckpointError(
                f"expected a plain LoRA, got {key} = {config[key]!r}, in {path}",
                remedy=MERGE,
            )
    if config.get("bias", "none") != "none" or config.get("init_lora_weights", True) not in _INITIALISED:
        got = (config.get("bias"), config.get("init_lora_weights"))
        raise CheckpointError(
            f"expected bias 'none' and an initialisation that keeps the base weights, got {got}, in {path}",
            remedy="convert it to a plain LoRA when saving: PEFT's path_initial_model_for_weight_conversion",
        )


def _require_ranks(adapter: Adapter) -> None:
    where = adapter.root / WEIGHTS
    if not adapter.modules:
        raise CheckpointError(f"expected at least one adapted matrix, got none, in {where}")
    for module in adapter.modules:
        down, up = adapter._factors(module)
        rank = adapter.scales.rank(module)
        if len(up.shape) != 2 or len(down.shape) != 2 or not up.shape[1] == down.shape[0] == rank:
            got = f"{list(up.shape)} and {list(down.shape)}"
            raise ShapeMismatch(f"expected factors of rank {rank} for {module}, got {got}, in {where}")
