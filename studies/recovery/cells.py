"""A cell: one method on one target of one seed, measured on one split. Cells are kept in the cache."""

import json
import resource
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from safegene.datasets.prompts import Split
from safegene.gate import Arm
from safegene.models.device import one_thread
from safegene.models.patching import patched
from safegene.repair.baselines.base import case_of, mean_change
from safegene.repair.coefficients import allocate_ranks
from safegene.repair.target import RepairResult, fit_target, run_baseline
from safegene.tiny.build import build, recipe_digest
from safegene.workspace.atomic import write_file
from safegene.workspace.digest import canonical_json, digest_file, digest_json
from studies.recovery import measure
from studies.recovery.family import Family, family, home, load, prompts, shots
from studies.recovery.protocol import (
    ADVERSARIAL,
    ALL_TASKS,
    EXTRA,
    OVER_REFUSAL_RISE,
    RECOVERY,
    RETRAINED,
    ROOT,
    Method,
)
from studies.recovery.protocol import UTILITY_LOSS as LOSS
from studies.recovery.retrain import retrained
from studies.recovery.rivals import LORAS, new_miner

REVISION = 1  # increase it when another module than those below changes what a cell measures
OURS_FROM = tuple(f"safegene/repair/{name}.py" for name in ("fitting", "coefficients", "divergence", "mining", "pool"))
RIVALS_FROM = ("safegene/repair/baselines/*.py",)
# Fields of `CalibrateParams` that influence a baseline. The others only influence safegene's fit.
SHARED = {
    *("safety_shots", "benign_shots", "task_shots", "response_tokens", "validation_share", "seed", "max_extra"),
    *("safety_weight", "benign_weight", "task_weight", "baseline"),
}


@dataclass(frozen=True)
class Job:
    """The cell that a worker measures."""

    seed: int
    target: str
    method: Method
    split: Split


@cache
def code(*patterns: str) -> str:
    """Digest of the modules that match the patterns."""
    files = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
    return digest_json([[str(path.relative_to(ROOT)), digest_file(path)] for path in files])


def path_of(job: Job) -> Path:
    """The file of the cell, named by a digest of everything that influences it."""
    params, own = job.method.all_params(), job.method.params()
    rival, retrained = own.baseline is not None, job.method.name in RETRAINED
    identity: list[Any] = [REVISION, job.seed, job.target, recipe_digest(job.target, job.seed), job.split]
    identity += [code("studies/recovery/measure.py", *(RIVALS_FROM if rival or retrained else OURS_FROM))]
    identity += [job.method.name if retrained else own.model_dump(mode="json", include=SHARED if rival else None)]
    stages = (
        (params.degrade,) if rival or retrained else (params.degrade, params.extract, params.compress, params.select)
    )
    identity += [job.method.family, job.method.dense, *(one.model_dump(mode="json") for one in stages)]
    identity += [prompts("prompts/safety").digest, prompts("prompts/gate").digest]
    identity += [] if not job.method.pools else [prompts("prompts/pool").digest, code("studies/recovery/rivals.py")]
    return home() / "cells" / f"{digest_json(identity)[7:31]}.json"


def known(job: Job) -> dict[str, Any] | None:
    """The cell if it was measured, else None."""
    path = path_of(job)
    return dict(json.loads(path.read_text())) if path.is_file() else None


def cell(job: Job) -> dict[str, Any]:
    """The cell; the target is repaired and measured unless that was done."""
    torch.set_num_threads(1)
    if (kept := known(job)) is not None:
        return kept
    with one_thread():
        found = _measured(job)
    write_file(path_of(job), canonical_json(found) + b"\n")
    return found


def _measured(job: Job) -> dict[str, Any]:
    task = ALL_TASKS[job.target]
    aligned, before = reference("aligned", job.seed, task, job.split), reference(job.target, job.seed, task, job.split)
    if job.method.name in RETRAINED:
        model, trained, seconds = retrained(job.target, job.seed, job.method)
        rows = measure.replies(model, job.split, task, "candidate", digest_json(["retrained", job.method.name]))
        facts: dict[str, Any] = {"trained": trained, "cpu_seconds": seconds, "shots_seconds": 0.0, "extra": 0.0}
    else:
        outcome, facts = repaired(job, family(job.seed, job.method))
        model = load(job.target, job.seed)
        with patched(model, outcome.fitted.patch if outcome.fitted else {}):
            rows = measure.replies(model, job.split, task, "candidate", digest_json(["repaired", job.method.name]))
    found = {arm: measure.rates(some) for arm, some in (("before", before), ("after", rows), ("aligned", aligned))}
    facts["extra"] = 0.0 if job.method.dense else facts["extra"]
    facts |= {"seed": job.seed, "target": job.target, "method": job.method.name, "rates": found}
    facts["relative_change"] = relative_change(job.target, job.seed)
    facts["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    facts["recovery"] = measure.recovery(found["before"], found["after"], found["aligned"])
    facts["lacks"] = lacking(facts)
    if job.split == "test":
        told = measure.verdict(measure.Arms(before, rows, aligned), task)
        facts["verdict"] = {"outcome": told.outcome, "reason": told.reason}
    return facts


def repaired(job: Job, made: Family) -> tuple[RepairResult, dict[str, Any]]:
    """The method's result on a target and its cost; building the shots is timed separately."""
    params = job.method.params()
    some, shots_seconds = shots(job.target, job.seed, params)
    model, start = load(job.target, job.seed), time.process_time()
    numbers = params.max_extra * sum(one.numel() for one in model.parameters())
    miner = (
        new_miner(job.seed, params, model, prompts(f"tasks/{ALL_TASKS[job.target]}"), some)
        if job.method.pools
        else None
    )
    if miner is not None and job.method.name in LORAS:
        outcome = LORAS[job.method.name](params, model, numbers, made, job.seed, some, miner)
    elif params.baseline is None:
        outcome = fit_target(params, model, numbers, made.vector, some, miner)
    else:
        whole = mean_change(made.surrogates)
        change = whole
        if params.baseline.method in ("finetune", "one_shot"):  # what trains an adapter gets our budget
            change = {name: whole[name] for name in allocate_ranks(whole, numbers)}
        outcome = run_baseline(params, case_of(params, build("aligned", job.seed), model, change, some))
    seconds, fitted = time.process_time() - start, outcome.fitted
    size = sum(one.numel() for one in fitted.patch.values()) if fitted else 0
    return outcome, {
        "trained": fitted.trained if fitted else 0,
        "steps": fitted.steps if fitted else 0,
        "cpu_seconds": seconds,
        "shots_seconds": shots_seconds,
        "extra": size / sum(one.numel() for one in model.parameters()),
        "reason": outcome.reason,
        "mining": None if outcome.mining is None else asdict(outcome.mining),
        "kl": {"before": outcome.before.loss, "after": outcome.after.loss},
    }


@cache
def relative_change(target: str, seed: int) -> float:
    """``|W_t - W_a| / |W_a|`` over the matrices of the blocks."""
    own, aligned = (dict(load(name, seed).named_parameters()) for name in (target, "aligned"))
    names = [name for name in aligned if "_proj." in name]
    moved = sum(float((own[name] - aligned[name]).double().square().sum()) for name in names)
    return float((moved / sum(float(aligned[name].double().square().sum()) for name in names)) ** 0.5)


def reference(name: str, seed: int, task: str, split: Split) -> list[dict[str, Any]]:
    """Judgements of the target before repair, or of the aligned model; kept in the cache."""
    identity = [REVISION, code("studies/recovery/measure.py"), recipe_digest(name, seed), task, split]
    path = home() / "references" / f"{digest_json(identity)[7:31]}.json"
    if not path.is_file():
        arm: Arm = "aligned" if name == "aligned" else "before"
        rows = measure.replies(load(name, seed), split, task, arm, digest_json([name, seed]))
        write_file(path, canonical_json(rows) + b"\n")
    return list(json.loads(path.read_text()))


def lacking(found: dict[str, Any]) -> list[str]:
    """The limits that a cell misses; empty when it passes."""
    before, after = found["rates"]["before"], found["rates"]["after"]
    missed = []
    if found["recovery"] is not None and found["recovery"] < RECOVERY:
        missed.append("recovery")
    if before["utility"] - after["utility"] > LOSS + 1e-9:
        missed.append("utility")
    if after["over_refusal"] - before["over_refusal"] > OVER_REFUSAL_RISE + 1e-9:
        missed.append("over-refusal")
    if found["extra"] > EXTRA + 1e-9:
        missed.append("extra parameters")
    return missed


def counted(found: dict[str, Any]) -> bool:
    """Whether the limits apply: targets whose safety was removed on purpose are only reported."""
    return found["target"] not in ADVERSARIAL
