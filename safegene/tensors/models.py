"""A checkpoint as a transformers model, with low-rank changes added to its weights."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from safegene.errors import CheckpointError, ShapeMismatch, TensorMissing
from safegene.linalg import LowRank, Patch
from safegene.tensors.adapter import open_adapter
from safegene.tensors.checkpoint import open_checkpoint
from safegene.tensors.device import dtype_for
from safegene.tensors.folder import check_folder, read_json

_SECRET = re.compile(r"^AWS_|TOKEN(?!IZERS)|SECRET|PASSW|CREDENTIAL|_KEY|APIKEY", re.IGNORECASE)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    root: Path,
    *,
    patch: Patch | None = None,
    adapters: Sequence[Path] = (),
    dtype: str = "float32",
    device: str = "cpu",
) -> "PreTrainedModel":
    """The model in eval mode, ``W + sum of adapters + patch``, summed in fp32 and then cast.

    Only files of ``root`` are read, and no code of it is run. Gradients are off.

    Args:
        root: a full checkpoint.
        patch: matrix name -> change to add.
        adapters: PEFT LoRA folders to add.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        device: where the model goes.

    Raises:
        UnsafeCheckpoint: see `open_checkpoint`.
        TensorMissing: the checkpoint lacks a weight of the model, or a change names one that is not there.
        ShapeMismatch: a change has another shape than its weight.
    """
    from transformers import AutoModelForCausalLM

    open_checkpoint(root)
    with _quiet(), without_credentials():
        model, info = AutoModelForCausalLM.from_pretrained(
            root,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found := sorted(map(str, info[problem])):
            raise TensorMissing(
                f"expected every weight of the model and no other, got {problem} {found[:3]}, in {root}"
            )
    for change in (*(open_adapter(folder).patch() for folder in adapters), patch or {}):
        add_patch(model, change)
    ready: PreTrainedModel = model.to(device=device, dtype=dtype_for(dtype, device)).eval().requires_grad_(False)
    return ready


def add_patch(model: torch.nn.Module, patch: Mapping[str, LowRank], *, scale: float = 1.0) -> None:
    """``W <- W + scale * up @ down`` in place, in W's dtype, for every matrix of the patch; ``scale=-1`` takes it back.

    Raises:
        TensorMissing: the model has no such matrix.
        ShapeMismatch: the change has another shape.
    """
    weights = dict(model.named_parameters())
    for name, change in patch.items():
        if name not in weights:
            raise TensorMissing(f"expected the matrix {name} in the model, got none of that name")
        weight = weights[name]
        if tuple(weight.shape) != change.shape:
            raise ShapeMismatch(f"expected a change of shape {tuple(weight.shape)} for {name}, got {change.shape}")
    with torch.no_grad():
        for name, change in patch.items():
            weight = weights[name]
            up, down = change.up.to(weight.device).float(), change.down.to(weight.device).float()
            weight.add_((up @ down).to(weight.dtype), alpha=scale)


def load_tokenizer(root: Path) -> "PreTrainedTokenizerBase":
    """The folder's tokenizer, padding on the left, as generation needs it.

    Raises:
        CheckpointError: there is none.
        UnsafeCheckpoint: its config names code to run.
    """
    from transformers import AutoTokenizer

    names = check_folder(root)
    for name in names:
        if name.endswith("config.json"):
            read_json(root / name)
    if not {"tokenizer.json", "tokenizer.model"} & set(names):
        raise CheckpointError(
            f"expected tokenizer.json or tokenizer.model, got neither, in {root}",
            remedy="save the tokenizer beside the model: tokenizer.save_pretrained(folder)",
        )
    tokenizer: Any = AutoTokenizer.from_pretrained(root, local_files_only=True, trust_remote_code=False)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    ready: PreTrainedTokenizerBase = tokenizer
    return ready


@contextmanager
def without_credentials() -> Iterator[None]:
    """Hide every environment variable that could be a secret: whatever a checkpoint gets to run, it finds none."""
    hidden = {name: value for name, value in os.environ.items() if _SECRET.search(name)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar of transformers' own: a tiny model loads in milliseconds, and stages show their own progress."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
