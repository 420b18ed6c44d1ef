"""``safegene export --check`` and ``safegene merge --check``: what was written, loaded by public tools alone.

In a fresh process transformers and peft load the written folder, and its logits on fixed tokens are compared with those
of the base weights plus the exact change. The sum is made in another way than what was written: for an adapter it is a
checkpoint with the change added by the names of its stored tensors, for a merged checkpoint a model with the change
added where the model holds it.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.export.adapter import read_change
from safegene.checkpoints.sources import local_checkpoint
from safegene.errors import CheckpointError
from safegene.models.loading import load_model
from safegene.models.structure import stored_places, text_config
from safegene.pipeline import public_logits
from safegene.vectors.linalg import Patch
from safegene.workspace.credentials import without_credentials
from safegene.workspace.layout import cache_folder
from safegene.workspace.params import FetchParams

TOLERANCE = 1e-5
"""Largest difference of a logit, as a share of the largest change of one."""
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SHAPE = (4, 16)  # sequences, tokens of each


@dataclass(frozen=True)
class ExportCheck:
    """How far an export's logits are from those of the base weights plus the change.

    Attributes:
        off: the largest difference.
        change: the largest change of a logit by the repair (and by the fine-tune, for a LoRA target).
    """

    off: float
    change: float

    @property
    def share(self) -> float:
        """``off`` as a share of ``change``; ``off`` itself where nothing was changed."""
        return self.off / self.change if self.change else self.off

    @property
    def words(self) -> str:
        """The finding in one line."""
        return f"loaded by public tools: logits are off by {self.share:.1e} of the change ({self.change:.2g})"


def check_adapter(
    candidate: Path, exported: Path, *, target: Path, aligned: Path, limits: FetchParams | None = None
) -> ExportCheck:
    """Compare an exported adapter with the candidate's change.

    Args:
        candidate: artefact with the repair.
        exported: the folder that `safegene.export` wrote.
        target: artefact of the fine-tune.
        aligned: artefact of the family's aligned model.
        limits: on a checkpoint that must be fetched again.

    Raises:
        CheckpointError: public tools do not load it, or its logits differ by more than `TOLERANCE`.
    """
    from safegene.checkpoints.export.merge import merge

    base = local_checkpoint(target, limits, family=aligned).root
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        merge(open_checkpoint(base), read_change(candidate), out=Path(folder) / "sum", dtype="float32")
        jobs = {"before": (base, None), "sum": (Path(folder) / "sum", None), "export": (base, exported)}
        found = _public(jobs, _tokens(base), Path(folder))
    return _confirmed(found["export"], found["sum"], found["before"], exported)


def check_merged(
    candidate: Path, merged: Path, *, target: Path, aligned: Path, limits: FetchParams | None = None
) -> ExportCheck:
    """Compare a merged checkpoint with base weights plus the candidate's change, rounded as it is stored.

    Arguments and errors as of `check_adapter`.
    """
    base = local_checkpoint(target, limits, family=aligned).root
    tokens = _tokens(base)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        found = _public({"before": (base, None), "export": (merged, None)}, tokens, Path(folder))
    return _confirmed(
        found["export"], _rounded_sum(base, read_change(candidate), merged, tokens), found["before"], merged
    )


def _confirmed(got: Tensor, expected: Tensor, before: Tensor, where: Path) -> ExportCheck:
    check = ExportCheck(float((got - expected).abs().max()), float((expected - before).abs().max()))
    if not check.share <= TOLERANCE:
        raise CheckpointError(
            f"expected logits within {TOLERANCE:.0e} of the change ({check.change:.2g}), got {check.share:.1e}, "
            f"in {where}",
            remedy="do not serve it; report this with the model type and the versions of transformers and peft",
        )
    return check


def _tokens(base: Path) -> Tensor:
    """Fixed tokens of the vocabulary, without those that the config gives a meaning, such as an image's."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base, local_files_only=True)
    meant = {value for key, value in config.to_dict().items() if "token" in key and isinstance(value, int)}
    usual = [token for token in range(text_config(config).vocab_size) if token not in meant]
    chosen = torch.randint(len(usual), SHAPE, generator=torch.Generator().manual_seed(0))
    return torch.tensor(usual)[chosen]


def _public(jobs: Mapping[str, tuple[Path, Path | None]], tokens: Tensor, folder: Path) -> dict[str, Tensor]:
    """Name -> logits, from a fresh process that has public tools only."""
    paths = [folder / name for name in ("jobs.json", "ids.safetensors", "logits.safetensors")]
    named = {name: (str(at), str(adapter.resolve()) if adapter else None) for name, (at, adapter) in jobs.items()}
    paths[0].write_text(json.dumps(named), encoding="utf-8")
    save_file({"ids": tokens}, paths[1])
    with without_credentials():
        command = [sys.executable, "-I", str(Path(public_logits.__file__)), *map(str, paths)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckpointError(f"expected transformers and peft to load the export, got {last[:300]}")
    return dict(load_file(paths[2]))


def _rounded_sum(base: Path, change: Patch, merged: Path, tokens: Tensor) -> Tensor:
    """The logits of base and change, each parameter rounded to the dtype in which ``merged`` stores it."""
    model, specs = load_model(base, patch=change, dtype="float32"), open_checkpoint(merged).specs
    held = model.state_dict()
    with torch.no_grad():
        for name, place in stored_places(model, specs).items():
            weight = held[place.parameter]
            weight.copy_(weight.to(DTYPES[specs[name].dtype]))
    return public_logits.logits(model, tokens)
