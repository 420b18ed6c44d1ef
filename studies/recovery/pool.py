"""Measure cells in parallel processes of one thread each; cells that are kept are not measured again."""

import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

from safegene.tiny.build import build
from studies.recovery.cells import Job, cell, known, reference
from studies.recovery.family import family
from studies.recovery.protocol import RETRAINED, TASKS, Method


def prepare(seed: int, methods: Sequence[Method]) -> None:
    """Make what several cells of a seed share, so that no two processes make it."""
    import torch

    torch.set_num_threads(1)
    for name in ("aligned", *TASKS):
        build(name, seed)
    if any(method.name == "lox" for method in methods):
        build("base", seed)
    done: list[dict[str, Any]] = []
    for method in methods:
        if method.name not in RETRAINED and method.family not in done:
            family(seed, method)
            done.append(method.family)
    for target, task in TASKS.items():
        for name in ("aligned", target):
            reference(name, seed, task, "validation")


def run(jobs: Sequence[Job], workers: int | None = None) -> list[dict[str, Any]]:
    """The cells of the jobs, in order."""
    count = workers or os.cpu_count() or 1
    missing = [job for job in jobs if known(job) is None]
    seeds = sorted({job.seed for job in missing})
    start = time.monotonic()
    with ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_single) as pool:
        prepared = {
            seed: pool.submit(prepare, seed, list({job.method.name: job.method for job in missing}.values()))
            for seed in seeds
        }
        for seed, preparation in prepared.items():
            preparation.result()
            _say(f"seed {seed}: family, targets and references are there ({time.monotonic() - start:.0f} s)")
        futures = {pool.submit(cell, job): job for job in missing}
        for number, future in enumerate(as_completed(futures), start=1):
            job, found = futures[future], future.result()
            _say(f"{number} of {len(missing)} ({time.monotonic() - start:.0f} s): {line(job, found)}")
    return [cell(job) for job in jobs]


def _single() -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"


def line(job: Job, found: dict[str, Any]) -> str:
    """One line about a cell."""
    after, lacks = found["rates"]["after"], ", ".join(found["lacks"]) or "passes"
    regained = "n/a" if found["recovery"] is None else f"{100 * found['recovery']:.0f}%"
    return (
        f"seed {job.seed} {job.target} {job.method.name}: recovery {regained}, harm {100 * after['harm']:.1f}, "
        f"over-refusal {100 * after['over_refusal']:.1f}, utility {100 * after['utility']:.1f}: {lacks}"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
