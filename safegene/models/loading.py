"""Load a checkpoint as a transformers model and tokenizer."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from safegene.checkpoints.adapter import open_adapter
from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.dtypes import dtype_for
from safegene.checkpoints.structure import by_stored_name
from safegene.checkpoints.unsafe import check_folder, read_json
from safegene.errors import CheckpointError, TensorMissing
from safegene.models.patching import add_patch
from safegene.models.structure import remember, structure_of
from safegene.vectors.linalg import Patch

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
    """The model with weights ``W + adapters + patch``, summed in fp32, then cast; in eval mode, without gradients.

    No code of the checkpoint is run, and no network is used.

    Args:
        root: a full checkpoint.
        patch: matrix name -> change to add.
        adapters: folders of PEFT LoRA adapters to add.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        device: of the model.

    Raises:
        UnsafeCheckpoint: see `open_checkpoint`.
        TensorMissing: the checkpoint lacks a weight of the model or has an extra one, or a change names a matrix that
            the model lacks.
        ShapeMismatch: a change has another shape than its matrix.
    """
    from transformers import AutoModelForCausalLM

    checkpoint = open_checkpoint(root)
    with quiet(), without_credentials():
        model, info = AutoModelForCausalLM.from_pretrained(
            root,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, info[problem])):
            raise TensorMissing(
                f"expected every weight of the model and no other, got {problem} {names[:3]}, in {root}"
            )
    remember(model, {name: spec.shape for name, spec in checkpoint.specs.items()})
    for change in (
        *(by_stored_name(structure_of(model).matrices, open_adapter(at).patch()) for at in adapters),
        patch or {},
    ):
        add_patch(model, change)
    ready: PreTrainedModel = model.to(device=device, dtype=dtype_for(dtype, device)).eval().requires_grad_(False)
    return ready


def load_tokenizer(root: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a checkpoint, with padding on the left, as generation needs it.

    Raises:
        CheckpointError: there is none.
        UnsafeCheckpoint: a config names code to run.
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
    """Remove environment variables that could hold a secret inside the block, out of reach of a checkpoint's code."""
    hidden = {name: value for name, value in os.environ.items() if _SECRET.search(name)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def quiet() -> Iterator[None]:
    """Switch off the progress bars of transformers; stages show their own progress."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
