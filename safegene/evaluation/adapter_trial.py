"""Whether PEFT computes an adapter's change: a trial on the base, with the adapter as a user loads it.

Names and shapes that fit are not enough: some layers read a weight past the module that holds it, so that PEFT's change
is lost without a word, and some pass arguments that PEFT's wrapper does not take.
"""

import warnings
from pathlib import Path

import torch
from torch import Tensor

from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.export.adapter import read_change
from safegene.errors import CheckpointError
from safegene.evaluation.shared_bases import load_adapter
from safegene.models.device import default_device, free_memory
from safegene.models.loading import load_model
from safegene.models.memory import size_of_checkpoint
from safegene.models.patching import patched

TOLERANCE = 1e-3  # of the largest change of a logit
TOKENS = 24


def adapter_fault(root: Path, folder: Path) -> str:
    """Why PEFT does not compute ``folder``'s change on the checkpoint ``root``, in float32; empty where it does.

    A checkpoint that the free memory does not hold in float32 is not tried, which is a reason too: in a 16-bit dtype,
    rounding hides what this looks for.

    Args:
        root: the checkpoint that the adapter loads on.
        folder: with the adapter and its change by matrix name.
    """
    needed, free = size_of_checkpoint(open_checkpoint(root), "float32").weights, free_memory()
    if needed > free:
        return f"it could not be tried: that needs {needed / 2**30:.1f} GiB of memory, got {free / 2**30:.1f} GiB free"
    model = load_model(root, dtype="float32", device=default_device())
    size = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(size, (1, TOKENS), generator=torch.Generator().manual_seed(0)).to(model.device)

    def logits() -> Tensor:
        with torch.inference_mode():
            found: Tensor = model(input_ids=ids, use_cache=False).logits.float()
        return found

    before = logits()
    with patched(model, read_change(folder)):
        expected = logits()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            load_adapter(model, None, folder, "trial")
            got = logits()
        except CheckpointError as error:
            return error.message
        except Exception as error:  # what a forward pass raises depends on the architecture
            return f"a forward pass fails: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
    change, off = (float((one - two).abs().max()) for one, two in ((expected, before), (got, expected)))
    if off <= TOLERANCE * change or off <= 1e-6:
        return ""
    return f"PEFT's logits are off by {off:.2g} where the change is {change:.2g}"
