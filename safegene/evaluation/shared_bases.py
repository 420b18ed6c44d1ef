"""The models of an evaluation in memory: each base once, and the arms' adapters beside it, as PEFT loads them.

An adapter is loaded from its folder by `peft.PeftModel`, as a user loads it, and an arm is served by switching adapters
on or off. So arms that share a base (the aligned model, the fine-tune and the candidate of a LoRA target; the fine-tune
and the candidate of a full one) share its weights, bit for bit.
"""

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from safegene.checkpoints.adapter import open_adapter
from safegene.checkpoints.chat_template import ChatFiles, chat_digest
from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.dtypes import bytes_in_memory, resolve_dtype
from safegene.checkpoints.export.adapter import CHANGE, write_adapter
from safegene.checkpoints.unsafe import read_json
from safegene.checkpoints.wanted import ADAPTER_CONFIG
from safegene.errors import CheckpointError
from safegene.gate import Arm
from safegene.models.device import default_device
from safegene.models.loading import load_model
from safegene.models.reading import VERSION, ReplyReader
from safegene.models.templates import load_chat_tokenizer
from safegene.workspace.digest import digest_json
from safegene.workspace.layout import cache_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HEADROOM = 1.25  # bytes needed per byte of weights: keys and values, activations, adapters


@dataclass(frozen=True)
class EvaluatedModel:
    """One model that answers: a full checkpoint, the adapter on it, and the digests of their content in that order.

    ``chat`` names the tokenizer and template that it is asked with; None for those of the full checkpoint. A repair of
    a LoRA target is asked like the target, so the digest of what the target brings along is the last of ``contents``.
    ``family`` is the folder of the aligned model, whose tokenizer reads the replies; None for the checkpoint itself.
    """

    root: Path
    adapters: tuple[Path, ...]
    contents: tuple[str, ...]
    chat: ChatFiles | None = None
    family: Path | None = None

    @cached_property
    def reading(self) -> str:
        """Digest of what reads the replies."""
        return digest_json({"version": VERSION, "tokenizer": chat_digest(self.family or self.root)})

    @property
    def digest(self) -> str:
        """Digest of everything that the model is: weights, tokenizer, chat template, adapter."""
        return digest_json(list(self.contents))


@dataclass(eq=False)
class SharedBase:
    """A full checkpoint in memory, and the adapters that were loaded onto it.

    Attributes:
        root: its folder.
        adapters: folders of the adapters that may be loaded onto it.
    """

    root: Path
    adapters: list[Path] = field(default_factory=list)
    _model: "PreTrainedModel | None" = field(default=None, init=False)
    _peft: Any = field(default=None, init=False)

    def takes(self, adapters: tuple[Path, ...]) -> bool:
        """Whether a model's adapters may be loaded onto this base, beside those that are already on it.

        PEFT wraps each parameter of ``target_parameters`` once, so all such adapters of a model must adapt the same
        parameters, and none may adapt the layer that holds one. Such an adapter therefore has a base of its own.
        """
        new = [folder for folder in adapters if folder not in self.adapters]
        return not new or not self.adapters or not any(map(_adapts_parameters, (*new, *self.adapters)))

    def bytes(self, dtype: str) -> int:
        """The size of the base's weights in memory."""
        specs = open_checkpoint(self.root).specs.values()
        return bytes_in_memory(resolve_dtype(dtype, specs), specs)

    @contextmanager
    def serving(self, adapters: tuple[Path, ...], dtype: str) -> Iterator["PreTrainedModel"]:
        """The model with exactly these adapters active, while the context is open.

        Raises:
            CheckpointError: PEFT does not take every factor of an adapter, or needs more than it holds.
        """
        if self._model is None:
            self._model = load_model(self.root, dtype=dtype, device=default_device())
        for folder in adapters:
            name = self._name(folder)
            if self._peft is None or name not in self._peft.peft_config:
                self._peft = load_adapter(self._model, self._peft, folder, name)
        if self._peft is None:
            yield self._model
        elif adapters:
            self._peft.set_adapter(self._name(adapters[-1]), inference_mode=True)
            yield self._model
        else:
            with self._peft.disable_adapter():
                yield self._model

    def _name(self, folder: Path) -> str:
        return f"adapter{self.adapters.index(folder)}"

    def release(self) -> None:
        """Free the memory."""
        self._model = self._peft = None


@dataclass
class SharedBases:
    """The bases of several models. At most as many are in memory as fit; each is loaded when it is first needed.

    Attributes:
        dtype: of the models, see `safegene.models.loading.load_model`.
    """

    dtype: str
    _bases: list[SharedBase] = field(default_factory=list, init=False)
    _alone: bool = field(default=False, init=False)
    _tokenizers: dict[ChatFiles, "PreTrainedTokenizerBase"] = field(default_factory=dict, init=False)

    def base_of(self, model: EvaluatedModel) -> SharedBase:
        """The base that serves the model; it need not be in memory."""
        same = [base for base in self._bases if base.root == model.root]
        base = next((one for one in same if set(model.adapters) <= set(one.adapters)), None)
        base = base or next((one for one in same if one.takes(model.adapters)), None)
        if base is None:
            base = SharedBase(model.root)
            self._bases.append(base)
        base.adapters += [folder for folder in model.adapters if folder not in base.adapters]
        return base

    def to_ask_first(self, models: Mapping[Arm, EvaluatedModel], *, last: Arm) -> list[tuple[SharedBase, list[Arm]]]:
        """Where the bases do not all fit into memory: those to use up and release first, with the arms on them.

        Args:
            models: arm -> model.
            last: the arm whose base is to stay in memory.
        """
        arms: dict[SharedBase, list[Arm]] = {}
        for arm, model in models.items():
            arms.setdefault(self.base_of(model), []).append(arm)
        need = sum(base.bytes(self.dtype) for base in arms)
        self._alone = len(arms) > 1 and need * HEADROOM > available_bytes(default_device())
        if not self._alone:
            return []
        return [(base, named) for base, named in arms.items() if last not in named]

    @contextmanager
    def serving(self, model: EvaluatedModel) -> Iterator[tuple["PreTrainedModel", "PreTrainedTokenizerBase"]]:
        """The model and its tokenizer, ready to answer while the context is open."""
        base = self.base_of(model)
        if self._alone:
            for other in self._bases:
                if other is not base:
                    other.release()
        with base.serving(model.adapters, self.dtype) as ready:
            yield ready, self._tokenizer(model.chat or _alone(model.root))

    def reader(self, model: EvaluatedModel) -> ReplyReader:
        """What reads the model's replies."""
        own = self._tokenizer(model.chat or _alone(model.root))
        return ReplyReader(self._tokenizer(_alone(model.family)) if model.family else own, own)

    def _tokenizer(self, chat: ChatFiles) -> "PreTrainedTokenizerBase":
        if chat not in self._tokenizers:
            self._tokenizers[chat] = load_chat_tokenizer(chat)
        return self._tokenizers[chat]


def _alone(root: Path) -> ChatFiles:
    return ChatFiles(root, root, root)


def available_bytes(device: str) -> int:
    """The memory that a device has left."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def load_adapter(model: "PreTrainedModel", onto: Any, folder: Path, name: str) -> Any:
    """Load an adapter from its folder with PEFT; its layers are put into ``model``.

    Args:
        model: the base.
        onto: the PEFT model around the base where it has an adapter already, else None.
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        name: the adapter's name in the PEFT model.

    Returns:
        The PEFT model around the base.

    Raises:
        CheckpointError: PEFT does not take every factor, or needs more than the folder holds.
    """
    from peft import PeftModel

    device = str(model.device)
    with _spelled_for_peft(folder) as spelled, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft calls deprecated names of transformers
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # an error below
        try:
            if onto is None:
                onto = PeftModel.from_pretrained(model, spelled, adapter_name=name, torch_device=device)
            result = onto.load_adapter(spelled, name, torch_device=device)
        except (ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(
                f"expected an adapter that PEFT loads, got {' '.join(str(error).split())[:300]}, in {folder}"
            ) from error
    for problem in ("missing_keys", "unexpected_keys"):
        if names := sorted(getattr(result, problem)):
            raise CheckpointError(
                f"expected PEFT to take exactly the factors of the adapter, got {problem} {names[:3]}, in {folder}",
                remedy="merge the adapter into its base where you trained it, and name the merged checkpoint instead",
            )
    onto.eval()
    return onto


@contextmanager
def _spelled_for_peft(folder: Path) -> Iterator[str]:
    """The folder, or a copy in PEFT's spelling where safegene reads names that PEFT does not, as of compiled models."""
    if (folder / CHANGE).is_file() or (adapter := open_adapter(folder)).is_plain:
        yield str(folder)
        return
    with tempfile.TemporaryDirectory(dir=cache_folder()) as copy:
        write_adapter(adapter.patch(), base_model=adapter.base_model_name, out=Path(copy))
        yield copy


def _adapts_parameters(folder: Path) -> bool:
    return bool(read_json(folder / ADAPTER_CONFIG).get("target_parameters"))
