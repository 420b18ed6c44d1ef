"""SIGKILL during each stage in turn: the next run ends in the same verdict, and no child process is left behind."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from safegene.pipeline.table import PIPELINE, Stage
from tests.factories.commands import BIN, run, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TRACKED = [stage for stage in PIPELINE if stage.tracked and stage.vector != "published"]


def children_of(process: psutil.Process) -> list[psutil.Process]:
    try:
        family: list[psutil.Process] = process.children(recursive=True)
        return family
    except psutil.NoSuchProcess:
        return []


def running(process: psutil.Process, stage: str) -> bool:
    """Whether a child of the run is the stage's own process."""
    for child in children_of(process):
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        if any(word.endswith("/safegene") for word in words) and stage in words:
            return True
    return False


def make_stale(ws: Path, stage: Stage) -> None:
    """Take a stage's output and its lock entry away, so that the next run must run it (and DVC's run cache with it)."""
    shutil.rmtree(ws / stage.output.format(target="sentiment"))
    shutil.rmtree(ws / ".dvc/cache/runs", ignore_errors=True)
    import yaml

    lock = yaml.safe_load((ws / "dvc.lock").read_text())
    del lock["stages"][stage.address("sentiment")]
    (ws / "dvc.lock").write_text(yaml.safe_dump(lock))


def verdict(ws: Path) -> Any:
    return json.loads((ws / "data/targets/sentiment/verdict/verdict.json").read_text())


@pytest.mark.parametrize("stage", TRACKED, ids=lambda s: s.name)
def test_a_killed_run_ends_in_the_same_verdict(copy: Path, stage: Stage, prefect_api: str) -> None:
    before = verdict(copy)
    digests = {s.name: (copy / s.output.format(target="sentiment") / "manifest.json").read_bytes() for s in TRACKED}
    make_stale(copy, stage)
    process = subprocess.Popen(
        [str(BIN / "safegene"), "run"],
        cwd=copy,
        env={**os.environ, "PREFECT_API_URL": prefect_api},
        stderr=subprocess.DEVNULL,
    )
    watched = psutil.Process(process.pid)

    def seen() -> bool:
        return running(watched, stage.name) or process.poll() is not None

    until(seen, 240, f"{stage.name} to run", every=0.05)  # some stages end in less than half a second
    assert process.poll() is None, "the run ended before its stage was seen"
    family = children_of(watched)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert [p.cmdline() for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []

    run(copy, "run", PREFECT_API_URL=prefect_api)
    assert verdict(copy) == before
    for s in TRACKED:
        assert (copy / s.output.format(target="sentiment") / "manifest.json").read_bytes() == digests[s.name], s.name
    assert run(copy, "audit", "verify").returncode == 0


def test_the_private_server_dies_with_the_run(copy: Path) -> None:
    """Without PREFECT_API_URL the run has a server of its own, which a SIGKILL must take along."""
    environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    process = subprocess.Popen([str(BIN / "safegene"), "run"], cwd=copy, env=environment, stderr=subprocess.DEVNULL)
    watched = psutil.Process(process.pid)
    family = until(lambda: children_of(watched), 60, "the server to start")
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []
