"""Which modules an adapter's config names, by PEFT's rules; the spellings of an adapter's tensor names.

The config comes from an untrusted file, so its regular expressions are matched with a time limit.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import regex
from pydantic import ConfigDict

from safegene.checkpoints.header import TensorSpec
from safegene.checkpoints.values import FLOATS
from safegene.errors import CheckpointError, FormatError, UnsafeCheckpoint
from safegene.workspace.parsing import Strict

PREFIX = "base_model.model."
ALL_LINEAR = "all-linear"
MATCH_SECONDS = 1.0  # for one name; an ordinary pattern needs microseconds
MERGE = "merge the adapter into its base where you trained it, and name the merged checkpoint instead"
_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?P<adapter>[A-Za-z0-9_-]+))?\.weight")
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_LAYER = re.compile(r".*?\.[^.]*\.(?P<layer>\d+)\.")
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


class LoraTargets(Strict):
    """The keys of ``adapter_config.json`` that say which modules are adapted."""

    model_config = ConfigDict(extra="ignore")

    target_modules: str | tuple[str, ...] | None = None
    exclude_modules: str | tuple[str, ...] | None = None
    layers_to_transform: int | tuple[int, ...] | None = None
    layers_pattern: str | tuple[str, ...] | None = None

    @property
    def is_literal(self) -> bool:
        """Whether no regular expression of the file is needed to match it."""
        named = isinstance(self.target_modules, tuple) or (self.target_modules or "").lower() == ALL_LINEAR
        patterns = _listed(self.layers_pattern)
        return named and not isinstance(self.exclude_modules, str) and all(map(_NAME.fullmatch, patterns))

    def matches(self, module: str, *, linear: bool) -> bool:
        """Whether PEFT adapts a module.

        Args:
            module: its path in the model.
            linear: whether it is a linear layer and not the head, as ``all-linear`` asks.

        Raises:
            FormatError: a pattern is no regular expression.
            UnsafeCheckpoint: a pattern takes too long.
        """
        if isinstance(self.exclude_modules, str):
            if _fullmatch(self.exclude_modules, module):
                return False
        elif _ends(module, _listed(self.exclude_modules)):
            return False
        if isinstance(self.target_modules, str):
            return linear if self.target_modules.lower() == ALL_LINEAR else _fullmatch(self.target_modules, module)
        names = _listed(self.target_modules)
        return module in names or (_ends(module, names) and self._layer_is_meant(module))

    def _layer_is_meant(self, module: str) -> bool:
        wanted = self.layers_to_transform
        if wanted is None or wanted == ():
            return True
        layer = _LAYER.match(module) if not self.layers_pattern else None
        for pattern in _listed(self.layers_pattern):
            layer = layer or _match(rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\.", module)
        return layer is not None and int(layer["layer"]) in ((wanted,) if isinstance(wanted, int) else wanted)


def canonical_specs(specs: Mapping[str, TensorSpec], path: Path) -> dict[str, TensorSpec]:
    """Tensors of an adapter under the names that PEFT writes, ``base_model.model.<module>.lora_A.weight``.

    Read are names with and without that prefix, with the name of one adapter (``lora_A.default.weight``), and with the
    segments that `torch.compile` and sharded training put in (``_orig_mod.``).

    Raises:
        CheckpointError: a tensor is no factor of a linear layer, or of an embedding or the head; two names mean the
            same tensor; there are several adapters.
    """
    canonical: dict[str, TensorSpec] = {}
    adapters: set[str] = set()
    for name, spec in specs.items():
        match = _KEY.fullmatch(name)
        if match is None or spec.dtype not in FLOATS:
            raise CheckpointError(
                f"expected only lora_A and lora_B weights of linear layers, got {name}, in {path}", remedy=MERGE
            )
        module = _WRAPPERS.sub("", match["module"])
        while module.startswith(PREFIX):
            module = module.removeprefix(PREFIX)
        if module.rpartition(".")[2] in ("lm_head", "embed_out", "embed_tokens", "wte"):
            raise CheckpointError(f"expected no LoRA of the embedding or the head, got {name}, in {path}", remedy=MERGE)
        own = f"{PREFIX}{module}.lora_{match['side']}.weight"
        adapters.add(match["adapter"] or "")
        if own in canonical or len(adapters) > 1:
            got = f"several: {', '.join(sorted(adapters))}" if len(adapters) > 1 else f"two tensors for {own}"
            raise CheckpointError(
                f"expected one adapter, got {got}, in {path}",
                remedy="save one adapter: save_pretrained(folder, selected_adapters=[...])",
            )
        canonical[own] = spec
    return canonical


def in_file_order(parsed: Mapping[str, Any] | None, raw: Any) -> dict[str, Any] | None:
    """A pattern in the order of its file: PEFT takes the first key that matches."""
    return None if parsed is None else {key: parsed[key] for key in raw}


def _listed(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)


def _ends(module: str, names: Iterable[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _fullmatch(pattern: str, module: str) -> bool:
    return _match(rf"(?:{pattern})\Z", module) is not None


def _match(pattern: str, module: str) -> Any:
    shown = f"{pattern[:80]!r}, in adapter_config.json"
    try:
        return regex.match(pattern, module, timeout=MATCH_SECONDS)
    except regex.error as error:
        raise FormatError(f"expected a regular expression, got {shown}: {error}") from None
    except TimeoutError:
        raise UnsafeCheckpoint(
            f"expected a pattern that matches {module} within {MATCH_SECONDS:.0f} s, got {shown}",
            remedy="name the modules of target_modules one by one",
        ) from None
