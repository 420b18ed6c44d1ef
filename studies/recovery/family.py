"""The vector of one seed of the tiny family, made by the pipeline's stages, and its targets, in the study's cache."""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from safegene.checkpoints.sources import ModelFiles
from safegene.datasets.prompts import PromptSet, Split, parse_prompts, prompt_lines, read_prompts
from safegene.models.loading import load_model
from safegene.pipeline.stages.compress import compress
from safegene.pipeline.stages.degrade import degrade
from safegene.pipeline.stages.extract import extract
from safegene.pipeline.stages.fetch import fetch
from safegene.pipeline.stages.select import select
from safegene.repair.selection import selected_matrices
from safegene.repair.shots import Shot, build_shots
from safegene.tiny.build import RECIPES, build
from safegene.tiny.data import task_prompts
from safegene.vectors.linalg import Patch
from safegene.vectors.vector import read_surrogates, read_vector
from safegene.workspace.atomic import write_file
from safegene.workspace.digest import digest_json
from safegene.workspace.layout import cache_folder
from safegene.workspace.manifest import read_manifest
from safegene.workspace.params import CalibrateParams, Params
from studies.recovery.fresh import NEW_TASK
from studies.recovery.fresh import rows as fresh_rows
from studies.recovery.protocol import ALL_TASKS, ROOT, Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SPLITS: tuple[Split, ...] = ("fit", "validation", "test")
PROMPTS = ROOT / "data" / "prompts"


def home() -> Path:
    """The study's folder in the cache."""
    return cache_folder() / "recovery"


@cache
def prompts(name: str) -> PromptSet:
    """A set of ``data``: ``prompts/gate`` or ``tasks/topic``; or the new task of the fresh protocol."""
    if name == f"tasks/{NEW_TASK}":
        rows = [row for split in SPLITS for row in task_prompts(NEW_TASK, split, fresh_rows(NEW_TASK, split))]
        return parse_prompts(prompt_lines(rows), Path(name))
    return read_prompts(ROOT / "data" / f"{name}.jsonl")


@dataclass(frozen=True)
class Family:
    """The results of the stages up to select.

    Attributes:
        digest: of the selection.
        vector: the factors of the selected layers.
        surrogates: name -> factors of ``W_degraded - W_aligned``.
        seconds: CPU seconds of degrade, extract, compress and select.
    """

    digest: str
    vector: Patch
    surrogates: Mapping[str, Patch]
    seconds: float


def family(seed: int, method: Method) -> Family:
    """The family with the method's parameters; stages that ran with these parameters are not run again."""
    params = method.all_params()
    identity = [params.degrade, params.extract, params.compress, params.select]
    digest = digest_json([seed, *(one.model_dump(mode="json") for one in identity), prompts("prompts/safety").digest])
    return stages(home() / f"family-{seed}-{digest[7:19]}", params, _fetched("aligned", seed), PROMPTS)


def stages(at: Path, params: Params, aligned: Path, prompts: Path) -> Family:
    """Degrade, extract, compress and select in the folder ``at``, unless their artefacts exist."""
    at.mkdir(parents=True, exist_ok=True)
    start = time.process_time()
    judge = params.evaluate.judge
    _once(
        at / "degraded",
        lambda out: degrade(judge=judge, aligned=aligned, prompts=prompts, out=out, params=params.degrade),
    )
    degraded = at / "degraded"
    _once(
        at / "delta",
        lambda out: extract(aligned=aligned, degraded=degraded, prompts=prompts, out=out, params=params.extract),
    )
    _once(at / "vector", lambda out: compress(delta=at / "delta", out=out, params=params.compress))
    _once(
        at / "selection",
        lambda out: select(
            vector=at / "vector", aligned=aligned, degraded=degraded, prompts=prompts, out=out, params=params.select
        ),
    )
    spent = at / "seconds"
    if not spent.is_file():
        spent.write_text(str(time.process_time() - start))
    vector = selected_matrices(read_vector(at / "vector"), at / "selection")
    digest = read_manifest(at / "selection").digest
    return Family(digest, vector, read_surrogates(at / "degraded"), float(spent.read_text()))


def _once(out: Path, run: Any) -> None:
    if not (out / "manifest.json").is_file():
        run(out)
    read_manifest(out)


def _fetched(name: str, seed: int) -> Path:
    at = home() / f"{name}-{seed}"
    at.parent.mkdir(parents=True, exist_ok=True)
    parent = None if name == "aligned" else _fetched("aligned", seed)
    source = f"tiny://{name}?seed={seed}"
    _once(at, lambda out: fetch(source, out=out, family=parent))
    return at


def model_of(name: str, seed: int) -> ModelFiles:
    """The checkpoint of a member; for a LoRA target the aligned model's folder and the adapter."""
    return (
        ModelFiles(build("aligned", seed), (build(name, seed),))
        if RECIPES[name].rank
        else ModelFiles(build(name, seed))
    )


def load(name: str, seed: int) -> "PreTrainedModel":
    """The model of a member."""
    at = model_of(name, seed)
    return load_model(at.root, adapters=at.adapters, dtype="float32")


def shots(name: str, seed: int, params: CalibrateParams) -> tuple[dict[Split, list[Shot]], float]:
    """The shots of a target and the CPU seconds of building them; both are kept in the cache."""
    keys = ("safety_shots", "benign_shots", "task_shots", "response_tokens", "validation_share")
    sets = [prompts("prompts/safety").digest, prompts(f"tasks/{ALL_TASKS[name]}").digest]
    at = home() / "shots" / f"{digest_json([name, seed, sets, *(getattr(params, key) for key in keys)])[7:27]}.pt"

    def making() -> Mapping[Split, Sequence[Shot]]:
        safety, tasks = prompts("prompts/safety"), prompts(f"tasks/{ALL_TASKS[name]}")
        return build_shots(params, build("aligned", seed), model_of(name, seed), safety, tasks)

    return kept_shots(at, making)


def kept_shots(at: Path, making: Callable[[], Mapping[Split, Sequence[Shot]]]) -> tuple[dict[Split, list[Shot]], float]:
    """The shots in a file and the CPU seconds of building them; built and written unless the file exists."""
    if not at.is_file():
        start = time.process_time()
        made = making()
        spent = time.process_time() - start
        content = io.BytesIO()
        torch.save([{split: _plain(some) for split, some in made.items()}, spent], content)
        write_file(at, content.getvalue())
    kept, spent = torch.load(at, weights_only=True)
    return {
        split: [Shot(i, k, tuple(ids), teacher) for i, k, ids, teacher in some] for split, some in kept.items()
    }, spent


def _plain(some: Sequence[Shot]) -> list[list[Any]]:
    return [[one.id, one.kind, list(one.ids), one.teacher] for one in some]
