"""The ledger's figures: ``make bench-ledger``. The part on S3 needs ``SAFEGENE_TEST_S3`` and ``AWS_*``.

- *Load*: `benchmarks.ledger.load.Load` on a local store and on S3: nothing lost, nothing double, the chain valid.
- *Growth*: CPU seconds of the promotions 10 to 25 and 1,000 to 1,015 of one ledger (16 each: one cycle of snapshots).
- *Audit*: ``safegene audit verify`` of that ledger and of a safety vector of 1 GiB, in a process of its own.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

from benchmarks.ledger.load import Load, LoadResult, find_faults, promote_once, run_load, target_of
from benchmarks.results import Figure, markdown, measured_at, new_figure, publish, write
from safegene.ledger import open_ledger
from safegene.ledger.store import open_store
from safegene.pipeline.init import init
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import write_artefact

COMMAND = "make bench-ledger"
HERE = Path(__file__).parent
LONG, CYCLE = 1000, 16
VECTOR = 1 << 30
BLOCK = 1 << 20


def main() -> None:
    """Measure everything, and write ``results.json`` and the section of RESULTS.md."""
    with _elsewhere() as folder:
        place = _new_bucket() if os.environ.get("SAFEGENE_TEST_S3") else None
        figures = load_figures("local store", init(folder / "local"))
        if place:
            figures += load_figures("S3 server", init(folder / "s3", ledger=place))
        long = init(folder / "long")
        figures += [*growth_figures(long), *audit_figures(long)]
    write(HERE / "results.json", figures)
    publish("ledger", "The ledger", measured_at(COMMAND), markdown(figures))


def load_figures(where: str, ws: Workspace, load: Load | None = None) -> list[Figure]:
    """A load on the ledger of a new workspace."""
    load, params, start = load or Load(), ws.params.promote, time.perf_counter()
    result = run_load(load, params, ws.root)
    seconds = time.perf_counter() - start
    ledger = open_ledger(params, ws.root)
    for attempt in range(load.targets):  # moves on the pointers that killed promoters left behind
        promote_once(ledger, ws.root, target_of(load, attempt), load.attempts + attempt)
    faults = find_faults(ledger, result)
    how = f"{where}: {load.promoters} promoters, {load.attempts:,} attempts"
    problems = (*faults.problems, *_audit_problems(ws))
    return [
        _held(f"{how}: killed between the writes", result.count("killed"), "attempts"),
        _held(f"{how}: promoted", result.count("pass"), "attempts"),
        _held(f"{how}: refused since another was first", _outrun(result), "attempts"),
        _held(f"{how}: lost", len(faults.lost), "attempts", goal="0"),
        _held(f"{how}: double", len(faults.double), "promotions", goal="0"),
        _held(f"{how}: problems of the chain, pointers and releases", len(problems), "problems", goal="0"),
        _held(f"{where}: attempts per second, {load.promoters} promoters", round(load.attempts / seconds, 1), "1/s"),
        _held(f"{where}: promotions per second", round(result.count("pass") / seconds, 1), "1/s"),
    ]


def growth_figures(ws: Workspace) -> list[Figure]:
    """CPU seconds of a promotion early and late in one ledger; each opens the ledger anew, as a run does."""
    seconds, load = list[float](), Load()
    for number in range(LONG + CYCLE):
        start = time.process_time()
        ledger = open_ledger(ws.params.promote, ws.root, cache=ws.root / ".safegene" / "records")
        promote_once(ledger, ws.root, target_of(load, number), number)
        seconds.append(time.process_time() - start)
    early, late = mean(seconds[10 : 10 + CYCLE]), mean(seconds[LONG : LONG + CYCLE])
    ratio = round(late / early, 2)
    return [
        _held("promotions 10 to 25: CPU time each", round(early * 1000, 1), "ms"),
        _held("promotions 1,000 to 1,015: CPU time each", round(late * 1000, 1), "ms"),
        _held("the 1,000th promotion beside the 10th", ratio, "x", goal="at most 1.5", holds=ratio <= 1.5),
        _held("a record of an 8B model", round(_newest_record(ws) / 1000, 1), "KB"),
    ]


def audit_figures(ws: Workspace) -> list[Figure]:
    """Wall time of ``safegene audit verify``, with the interpreter's start, after a vector was added."""
    with write_artefact(ws.vector, stage="compress", params={}, inputs={}) as draft:
        block = os.urandom(BLOCK)
        with (draft.path / "vector.safetensors").open("wb") as file:
            for _ in range(VECTOR // BLOCK):
                file.write(block)
    start = time.perf_counter()
    found = _audit_problems(ws)
    seconds = time.perf_counter() - start
    if found:
        raise SystemExit(f"expected a sound ledger, got {found[0]}")
    name = f"audit verify: {LONG + CYCLE:,} records, {LONG + CYCLE:,} releases and a vector of 1 GiB"
    return [_held(name, round(seconds, 2), "s", goal="under 10", holds=seconds < 10)]


def _audit_problems(ws: Workspace) -> list[str]:
    command = [str(Path(sys.executable).parent / "safegene"), "audit", "verify"]
    done = subprocess.run(command, cwd=ws.root, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or done.stderr:
        raise SystemExit(f"expected an audit, got {done.stderr}")
    return [line for line in done.stdout.splitlines() if line.startswith("problem")]


def _newest_record(ws: Workspace) -> int:
    ledger = open_ledger(ws.params.promote, ws.root)
    newest = next(ledger.walk())
    return len(ledger.store.get(f"records/{newest.digest.removeprefix('sha256:')}.json")[0])


def _outrun(result: LoadResult) -> int:
    return result.count("superseded") + result.count("error")


def _held(name: str, value: float, unit: str, *, goal: str = "", holds: bool | None = None) -> Figure:
    verdict = value == 0 if goal == "0" else holds
    return new_figure(name, value, unit, command=COMMAND, goal=goal, holds=verdict)


def _new_bucket() -> str:
    import boto3

    os.environ["AWS_ENDPOINT_URL"] = os.environ["SAFEGENE_TEST_S3"]
    name = f"safegene-bench-{os.getpid()}"
    boto3.client("s3").create_bucket(Bucket=name)
    place = f"s3://{name}/ledger"
    open_store(place)
    return place


@contextmanager
def _elsewhere() -> Iterator[Path]:
    """A folder with keys, memory and cache of the benchmark's own."""
    with TemporaryDirectory(prefix="safegene-ledger-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for variable in ("SAFEGENE_KEYS", "SAFEGENE_STATE", "SAFEGENE_CACHE"):
            os.environ[variable] = str(folder / variable.rpartition("_")[2].lower())
        yield folder


if __name__ == "__main__":
    main()
