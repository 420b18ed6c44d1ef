"""A fine-tune with added tokens is calibrated and merged; the rows of its new tokens stay as they are."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from safegene.checkpoints.adapter import open_adapter
from safegene.checkpoints.record import read_record
from safegene.checkpoints.sources import local_checkpoint
from safegene.pipeline.export import merge
from safegene.pipeline.stages.fetch import fetch
from safegene.workspace.manifest import read_manifest
from tests.factories.artefacts import LEAST, made, run_calibrate
from tests.factories.hostile import edit
from tests.factories.llamas import copy

NEW = ["<|im_start|>", "<|im_end|>"]


def grown(folder: Path) -> Path:
    """The tiny family's fine-tune ``group`` with two more tokens, and rows for them and for padding."""
    copy(local_checkpoint(made().target("group"), family=made().aligned).root, folder)
    size = int(json.loads((folder / "config.json").read_text())["vocab_size"])
    more = [{"id": size + at, "content": token, "special": True, **_PLAIN} for at, token in enumerate(NEW)]
    edit(folder / "tokenizer.json", lambda t: t["added_tokens"].extend(more))
    edit(folder / "config.json", lambda config: config.update(vocab_size=size + 8))
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            weights[name] = torch.cat([weights[name], torch.full((8, weights[name].shape[1]), 0.01)])
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def test_a_fine_tune_with_added_tokens_is_repaired_and_its_new_rows_stay(tmp_path: Path) -> None:
    folder, target, candidate = grown(tmp_path / "grown"), tmp_path / "target", tmp_path / "candidate"
    fetch(f"file://{folder}", out=target, family=made().aligned)
    assert read_record(target).added_tokens == tuple(NEW)
    run_calibrate("group", candidate, LEAST, target=target)
    assert read_manifest(candidate).inputs["target"] == read_manifest(target).digest
    assert open_adapter(candidate).modules
    merge(aligned=made().aligned, target=target, candidate=candidate, out=tmp_path / "merged", lossy=True)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    assert before.keys() == after.keys()
    same = [name for name in before if torch.equal(before[name].float(), after[name].float())]
    assert "model.embed_tokens.weight" in same
    assert len(same) < len(before)
