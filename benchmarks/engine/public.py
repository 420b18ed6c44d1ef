"""Logits of exports as a fresh process with transformers and PEFT alone computes them."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from safegene.pipeline import public_logits


def public_logits_of(jobs: Mapping[str, tuple[Path, Path | None]], ids: Tensor, folder: Path) -> dict[str, Tensor]:
    """Name -> logits of the model of a folder, with the adapter of another where there is one.

    All are loaded in one process; where that fails, each in a process of its own, and those that fail are left out.
    """
    found = _run(jobs, ids, folder)
    if found is not None:
        return found
    each = {name: _run({name: job}, ids, folder) for name, job in jobs.items()}
    return {name: logits[name] for name, logits in each.items() if logits is not None}


def _run(jobs: Mapping[str, tuple[Path, Path | None]], ids: Tensor, folder: Path) -> dict[str, Tensor] | None:
    paths = [folder / name for name in ("jobs.json", "ids.safetensors", "logits.safetensors")]
    named = {name: (str(root), str(adapter) if adapter else None) for name, (root, adapter) in jobs.items()}
    paths[0].write_text(json.dumps(named), encoding="utf-8")
    save_file({"ids": ids}, paths[1])
    command = [sys.executable, "-I", str(Path(public_logits.__file__)), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr.strip()[-2000:], file=sys.stderr)
        return None
    return dict(load_file(paths[2]))
