"""Load a checkpoint as a transformers model and tokenizer."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from safegene.checkpoints.adapter import open_adapter
from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.dtypes import FOUR_BIT, bytes_in_memory, dtype_named, resolve_dtype
from safegene.checkpoints.structure import by_stored_name
from safegene.checkpoints.unsafe import MAX_JSON, check_folder, read_json
from safegene.errors import CheckpointError, ParamsError, TensorMissing, UnsafeCheckpoint
from safegene.models.device import place_weights
from safegene.models.patching import add_patch, low_rank_hooks
from safegene.models.structure import analyse, model_class, remember, resolved_config, structure_of
from safegene.text import visible
from safegene.vectors.linalg import Patch, concat
from safegene.workspace.credentials import without_credentials

_HELD = "_safegene_changes"  # attribute of a model: its hooks and their changes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    root: Path,
    *,
    patch: Patch | None = None,
    adapters: Sequence[Path] = (),
    dtype: str = "auto",
    device: str = "cpu",
) -> "PreTrainedModel":
    """The model of a checkpoint, with the changes of adapters and patch; in eval mode, without gradients.

    Weights are loaded straight in their dtype and onto their device. On a CPU, tensors that are stored in that dtype
    are the file's own pages, mapped privately, so the peak is the weights themselves: 2 bytes a parameter in bfloat16.
    In float32, changes are added to the weights. In a narrower dtype their sum would be rounded away, so they are
    computed beside the weights during each forward pass, as long as the model lives; see `held_changes`.

    No code of the checkpoint is run, and no network is used.

    Args:
        root: a full checkpoint.
        patch: matrix name -> change to add.
        adapters: folders of PEFT LoRA adapters to add.
        dtype: ``auto`` (as stored), ``float32``, ``bfloat16``, ``float16``, or ``4bit`` (NF4 by bitsandbytes; products
            in bfloat16).
        device: of the model. ``cuda`` spreads a model that one GPU does not hold over all of them, and the rest over
            the main memory; see `place_weights`.

    Raises:
        UnsafeCheckpoint: see `open_checkpoint`.
        ParamsError: there is no such dtype, or bitsandbytes is not installed.
        TensorMissing: the checkpoint lacks a weight of the model or has an extra one, or a change names a matrix that
            the model lacks.
        ShapeMismatch: a change has another shape than its matrix.
    """
    checkpoint = open_checkpoint(root)
    name, shapes = resolve_dtype(dtype, checkpoint.specs.values()), {n: s.shape for n, s in checkpoint.specs.items()}
    config = resolved_config(checkpoint.config, len(shapes), str(root))
    size = bytes_in_memory(name, [checkpoint.specs[tensor] for tensor in checkpoint.shapes])
    options = place_weights(device, size, quantised=name == FOUR_BIT)
    if name == FOUR_BIT:
        options["quantization_config"] = _four_bit_settings()
    gc.collect()  # a model that was patched is a cycle of references: an earlier one is freed only here
    with quiet(), without_credentials():
        model, info = model_class(config).from_pretrained(
            root,
            dtype=dtype_named(name),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, info[problem])):
            raise TensorMissing(
                f"expected every weight of the model and no other, got {problem} {names[:3]}, in {root}"
            )
    remember(model, shapes, analyse(checkpoint) if name == FOUR_BIT else None)
    ready: PreTrainedModel = model.eval().requires_grad_(False)
    own = [by_stored_name(structure_of(model).matrices, open_adapter(folder).patch()) for folder in adapters]
    _change(ready, [*own, patch or {}], exact=name == "float32")
    return ready


def held_changes(model: nn.Module) -> Patch:
    """Matrix name -> the change that `load_model` computes beside the weight; empty where all are in the weights."""
    held: tuple[ExitStack, Patch] | None = getattr(model, _HELD, None)
    return held[1] if held else {}


def _change(model: "PreTrainedModel", changes: Sequence[Patch], *, exact: bool) -> None:
    if exact:
        for change in changes:
            add_patch(model, change)
        return
    names = {name: None for change in changes for name in change}
    whole = {name: concat([change[name] for change in changes if name in change]) for name in names}
    if whole:
        hooks, one = ExitStack(), torch.ones(())
        hooks.enter_context(low_rank_hooks(model, whole, dict.fromkeys(whole, one)))
        setattr(model, _HELD, (hooks, whole))  # the hooks are removed with the stack, and so with the model


def _four_bit_settings() -> Any:
    if find_spec("bitsandbytes") is None:
        raise ParamsError(
            f"expected bitsandbytes for dtype {FOUR_BIT}, got no such package",
            remedy="pip install bitsandbytes, or set family.dtype to auto",
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def load_tokenizer(root: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a checkpoint, with padding on the left, as generation needs it.

    Raises:
        CheckpointError: there is none, or transformers cannot load it.
        UnsafeCheckpoint: a file is too large, or names code to run.
    """
    from transformers import AutoTokenizer

    names = check_folder(root)
    for name in names:
        if name.endswith("config.json"):
            read_json(root / name)
        elif not name.endswith(".safetensors") and (size := (root / name).stat().st_size) > MAX_JSON:
            raise UnsafeCheckpoint(f"expected at most {MAX_JSON} bytes, got {size}, in {root / name}")
    if not {"tokenizer.json", "tokenizer.model"} & set(names):
        raise CheckpointError(
            f"expected tokenizer.json or tokenizer.model, got neither, in {root}",
            remedy="save the tokenizer beside the model: tokenizer.save_pretrained(folder)",
        )
    try:
        with without_credentials():
            tokenizer: Any = AutoTokenizer.from_pretrained(root, local_files_only=True, trust_remote_code=False)
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer("a b")  # some wrong settings show only now
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises what it likes, and PanicException, which is no Exception
        shown = visible(" ".join(f"{type(error).__name__}: {error}".split()), characters=200)
        raise CheckpointError(
            f"expected a tokenizer that transformers loads, got {shown}, in {root}",
            remedy="save the tokenizer again: tokenizer.save_pretrained(folder)",
        ) from None
    ready: PreTrainedTokenizerBase = tokenizer
    return ready


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
