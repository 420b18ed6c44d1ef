"""The artefacts of the tiny family's first stages, made once per test session from few rows, to be looked at only."""

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from safegene.pipeline.stages.calibrate import calibrate
from safegene.pipeline.stages.compress import compress
from safegene.pipeline.stages.degrade import degrade
from safegene.pipeline.stages.extract import extract
from safegene.pipeline.stages.fetch import fetch
from safegene.pipeline.stages.select import select
from safegene.workspace.manifest import Manifest, read_manifest
from safegene.workspace.params import (
    CalibrateParams,
    CompressParams,
    DegradeParams,
    ExtractParams,
    JudgeParams,
    SelectParams,
    Surrogate,
)

DATA = Path(__file__).parents[2] / "data"
GRAMMAR = JudgeParams(kind="grammar")
DEGRADE = DegradeParams(
    surrogates={"compliance": Surrogate(pools=("compliance",)), "jailbreak": Surrogate(pools=("jailbreak",))},
    max_steps=64,
    probe_prompts=32,
)

FEW = CalibrateParams(safety_shots=48, benign_shots=32, task_shots=16, steps=16, batch_size=32, measure_every=8)
LEAST = CalibrateParams(
    safety_shots=16, benign_shots=12, task_shots=8, response_tokens=6, steps=2, batch_size=16, measure_every=1
)


@dataclass(frozen=True)
class Made:
    """Folders of artefacts."""

    root: Path

    def __getattr__(self, name: str) -> Path:
        return self.root / name

    def target(self, name: str) -> Path:
        """The artefact of a fetched target of the tiny family."""
        out = self.root / f"target-{name}"
        if not out.is_dir():
            uri = f"tiny://{name}?seed=0"
            fetch(uri, out=out, family=self.root / "aligned")
        return out


@cache
def made() -> Made:
    """aligned, degraded, delta, vector and selection of the tiny family, with two surrogates."""
    folder = tempfile.mkdtemp(prefix="safegene-made-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    ws = Made(Path(folder))
    prompts = DATA / "prompts"
    fetch("tiny://aligned?seed=0", out=ws.aligned)
    degrade(judge=GRAMMAR, aligned=ws.aligned, prompts=prompts, out=ws.degraded, params=DEGRADE)
    extract(aligned=ws.aligned, degraded=ws.degraded, prompts=prompts, out=ws.delta, params=ExtractParams(max_rank=16))
    compress(delta=ws.delta, out=ws.vector, params=CompressParams(rank=4))
    chosen = SelectParams(prompts=48)
    select(aligned=ws.aligned, degraded=ws.degraded, vector=ws.vector, prompts=prompts, out=ws.selection, params=chosen)
    return ws


def payload(folder: Path, name: str) -> dict[str, Any]:
    """A JSON payload of a verified artefact."""
    read_manifest(folder)
    return dict(json.loads((folder / name).read_text()))


def run_calibrate(name: str, out: Path, params: CalibrateParams = FEW, **changed: Any) -> Manifest:
    """Calibrate a target of the tiny family; ``changed`` replaces inputs."""
    ws = made()
    inputs: dict[str, Any] = {
        "vector": ws.vector,
        "selection": ws.selection,
        "degraded": ws.degraded,
        "aligned": ws.aligned,
        "target": changed.pop("target", None) or ws.target(name),
        "prompts": DATA / "prompts",
        "task": DATA / "tasks" / "group.jsonl",
    }
    return calibrate(**inputs | changed, out=out, params=params)


def parameters(name: str) -> int:
    """How many numbers the model of a target has."""
    return int(payload(made().target(name), "checkpoint.json")["parameters"])


def files(folder: Path) -> dict[str, bytes]:
    """Every file of an artefact."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def few(folder: Path, name: str, *, keep: Callable[[dict[str, Any]], bool]) -> Path:
    """A copy of the prompts folder with only some rows of one set."""
    shutil.copytree(DATA / "prompts", folder)
    rows = [line for line in (folder / name).read_text().splitlines() if keep(json.loads(line))]
    (folder / name).write_text("".join(row + "\n" for row in rows))
    return folder
