"""Logits of a model as its user gets them: with transformers and peft alone.

`safegene.pipeline.check_export` runs this file as a script, in a process of its own; nothing of safegene is imported.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor


def load(folder: str, adapter: str | None) -> Any:
    """The model of a folder, with a PEFT adapter where one is named, in float32."""
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    named = (config.architectures or ["AutoModelForCausalLM"])[0]
    auto = getattr(transformers, named, transformers.AutoModelForCausalLM)
    model = auto.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).eval()
    return model


def logits(model: Any, ids: Tensor) -> Tensor:
    """(batch, tokens, vocabulary): the logits, computed in float64, so that rounding does not blur a small change."""
    model.set_experts_implementation("eager")  # the default has no float64
    with torch.inference_mode():
        found: Tensor = model.double()(input_ids=ids, use_cache=False).logits
    return found


def main(jobs: Path, ids: Path, out: Path) -> None:
    """Write the logits of every job.

    Args:
        jobs: JSON; name -> [folder, adapter or null].
        ids: safetensors with the tensor ``ids`` (batch, tokens).
        out: safetensors with a tensor for each name.
    """
    tokens = load_file(ids)["ids"]
    found = {
        name: logits(load(folder, adapter), tokens)
        for name, (folder, adapter) in json.loads(jobs.read_text(encoding="utf-8")).items()
    }
    save_file(found, out)


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    main(*map(Path, sys.argv[1:]))
