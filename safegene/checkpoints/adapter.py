"""A PEFT LoRA adapter as a patch: ``dW = scale * B A`` per matrix, with nothing of it left out.

Read are rank, alpha, both patterns and rsLoRA's scale. Refused, because a sum of low-rank changes could not say it:
DoRA, biases, modules saved whole, embeddings, transposed weights, and initialisations that changed the base weights.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safegene.checkpoints.folder import check_folder, read_json
from safegene.checkpoints.header import TensorSpec, read_header
from safegene.checkpoints.values import check_values, read_tensor
from safegene.errors import CheckpointError, FormatError, ShapeMismatch, TensorMissing
from safegene.workspace.digest import digest_files

if TYPE_CHECKING:
    from safegene.vectors.linalg import Patch

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_REFUSED = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "fan_in_fan_out",
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


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter whose config and header were verified.

    Attributes:
        root: its folder.
        rank: the largest rank of a matrix.
        scale: alpha / r (rsLoRA: alpha / sqrt r) where no pattern says otherwise.
        base_model_name: what it says it was trained on; a claim, not a proof.
        config: ``adapter_config.json``.
        specs: tensor name -> where it lies in ``adapter_model.safetensors``.
        files: every file of the folder, sorted.
    """

    root: Path
    rank: int
    scale: float
    base_model_name: str
    config: Mapping[str, Any]
    specs: Mapping[str, TensorSpec]
    files: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        """Digest of every file."""
        return digest_files(self.root, self.files)

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Matrix name as in the base's safetensors -> (out, r, in)."""
        found = {}
        for module in self.modules:
            down, up = self._pair(module)
            found[f"{module}.weight"] = (up.shape[0], up.shape[1], down.shape[1])
        return found

    @property
    def modules(self) -> tuple[str, ...]:
        """The adapted modules, sorted."""
        return tuple(sorted({match[1] for name in self.specs if (match := _TENSOR.fullmatch(name))}))

    @property
    def parameters(self) -> int:
        """How many numbers the adapter has."""
        return sum(spec.numel for spec in self.specs.values())

    def patch(self) -> "Patch":
        """Matrix name -> LowRank in fp32, the module's scale in ``up``: up (out, r) = scale B, down (r, in) = A."""
        from safegene.vectors.linalg import LowRank

        found = {}
        for module in self.modules:
            down, up = (read_tensor(self.root / WEIGHTS, spec).float() for spec in self._pair(module))
            found[f"{module}.weight"] = LowRank(up * module_scale(self.config, module), down)
        return found

    def _pair(self, module: str) -> tuple[TensorSpec, TensorSpec]:
        names = [f"base_model.model.{module}.lora_{side}.weight" for side in "AB"]
        for name in names:
            if name not in self.specs:
                raise TensorMissing(f"expected the tensor {name}, got only its other half, in {self.root / WEIGHTS}")
        return self.specs[names[0]], self.specs[names[1]]


def open_adapter(root: Path) -> Adapter:
    """Verify an adapter's folder, config and header; read no weight.

    Raises:
        UnsafeCheckpoint: opening it could run code, leave the folder or exhaust memory.
        CheckpointError: it is no plain LoRA adapter.
        ShapeMismatch: its two factors, or factors and config, disagree about a rank.
    """
    files = check_folder(root)
    config = read_json(root / CONFIG)
    _require_plain(config, root / CONFIG)
    if WEIGHTS not in files:
        raise CheckpointError(f"expected {WEIGHTS}, got no such file, in {root}")
    if extra := sorted(name for name in files if name.endswith(".safetensors") and name != WEIGHTS):
        raise FormatError(f"expected only {WEIGHTS}, got also {extra[0]}, in {root}")
    specs = read_header(root / WEIGHTS)
    if odd := [
        name for name, s in specs.items() if not _TENSOR.fullmatch(name) or s.dtype not in ("F64", "F32", "F16", "BF16")
    ]:
        raise CheckpointError(
            f"expected only lora_A and lora_B weights of linear layers, got {odd[0]}, in {root / WEIGHTS}",
            remedy="save the adapter with bias='none' and modules_to_save=None, without embeddings",
        )
    base_name = str(config.get("base_model_name_or_path") or "")
    adapter = Adapter(root, 0, module_scale(config, ""), base_name, config, specs, files)
    _require_ranks(adapter)
    return Adapter(root, max(r for _, r, _ in adapter.shapes.values()), adapter.scale, base_name, config, specs, files)


def check_finite_adapter(adapter: Adapter) -> None:
    """Read every factor once and refuse NaN, Inf and absurd sizes.

    Raises:
        CheckpointError: names the first tensor that holds one.
    """
    check_values(adapter.root / WEIGHTS, adapter.specs.values())


def module_scale(config: Mapping[str, Any], module: str) -> float:
    """Alpha / r of a module, or alpha / sqrt(r) for rsLoRA, with PEFT's rank and alpha patterns."""
    rank = _pattern(config.get("rank_pattern"), module, config["r"])
    alpha = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))


def _pattern(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value whose key, as PEFT reads it, is a regular expression for the end of the module's name; else default.

    Keys come from an untrusted file, so they are compared as literal text, or anchored literal text: a key that needs
    a regular expression is refused when the config is read.
    """
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
                remedy="merge the adapter into its base where you made it, and name the full checkpoint instead",
            )
    if config.get("bias", "none") != "none" or config.get("init_lora_weights", True) not in _INITIALISED:
        got = (config.get("bias"), config.get("init_lora_weights"))
        raise CheckpointError(
            f"expected bias 'none' and an initialisation that leaves the base as it is, got {got}, in {path}",
            remedy="convert it to a plain LoRA when saving: PEFT's path_initial_model_for_weight_conversion",
        )
    patterns = [config.get(key) or {} for key in ("rank_pattern", "alpha_pattern")]
    if not all(isinstance(pattern, dict) for pattern in patterns):
        raise FormatError(
            f"expected module names with numbers in rank_pattern and alpha_pattern, got others, in {path}"
        )
    numbers = [config.get("r"), config.get("lora_alpha"), *(v for p in patterns for v in dict(p).values())]
    if not all(type(n) in (int, float) and n > 0 for n in numbers) or type(config["r"]) is not int:
        raise FormatError(f"expected positive numbers for r, lora_alpha and their patterns, got {numbers}, in {path}")
    for key in (key for pattern in patterns for key in pattern):
        if not re.fullmatch(r"\^?[A-Za-z0-9_.-]+", key):
            raise CheckpointError(f"expected module names in rank_pattern and alpha_pattern, got {key!r}, in {path}")


def _require_ranks(adapter: Adapter) -> None:
    where = adapter.root / WEIGHTS
    if not adapter.modules:
        raise CheckpointError(f"expected at least one adapted matrix, got none, in {where}")
    for module in adapter.modules:
        down, up = adapter._pair(module)
        rank = _pattern(adapter.config.get("rank_pattern"), module, adapter.config["r"])
        if len(up.shape) != 2 or len(down.shape) != 2 or not up.shape[1] == down.shape[0] == rank:
            got = f"{list(up.shape)} and {list(down.shape)}"
            raise ShapeMismatch(f"expected factors of rank {rank} for {module}, got {got}, in {where}")
