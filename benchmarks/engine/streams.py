"""What extraction and merge cost, beside reading, mergekit and PEFT: ``make bench-engine``.

Random Llama families in bf16 in a temporary folder, one process per measurement, one thread. CPU seconds are user +
system of the whole process, start-up included. mergekit is run as a program from a virtual environment of its own:
``SAFEGENE_BENCH_MERGEKIT`` names the folder with its executables; otherwise one is made with pip, and where that fails
the rows say so. ``python -m benchmarks.engine.streams --8b`` measures an 8B-shaped family too (50 GB of disk).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import Figure, header, markdown, new_figure, publish, write

COMMAND = "make bench-engine"
LARGE = "python -m benchmarks.engine.streams --8b"
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True)
class Cost:
    """What one process took: CPU seconds (user + system), wall seconds, and peak RSS in MB."""

    cpu: float
    wall: float
    peak: float


def cost_of(*command: str) -> Cost:
    """Run a command that must succeed."""
    start = time.monotonic()
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Cost(used.ru_utime + used.ru_stime, time.monotonic() - start, used.ru_maxrss / 1024)


def task(*arguments: str) -> Cost:
    """One task of `benchmarks.engine.stream_tasks`."""
    return cost_of(sys.executable, "-m", "benchmarks.engine.stream_tasks", *arguments)


def mergekit(box: Path) -> Path | None:
    """The folder with mergekit's executables; None where it cannot be had."""
    if "SAFEGENE_BENCH_MERGEKIT" in os.environ:
        return Path(os.environ["SAFEGENE_BENCH_MERGEKIT"])
    try:
        subprocess.run([sys.executable, "-m", "venv", box / "mergekit"], check=True)
        subprocess.run([box / "mergekit/bin/pip", "install", "--quiet", "mergekit"], check=True, timeout=1800)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired, OSError):
        return None
    return box / "mergekit/bin"


class Report:
    """Figures in the order of measurement."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []

    def add(self, name: str, value: float, unit: str, goal: str = "", holds: bool | None = None) -> None:
        """Add one figure."""
        command = LARGE if name.startswith("8B: ") else COMMAND
        self.figures.append(new_figure(name, round(value, 4), unit, command=command, goal=goal, holds=holds))
        print(f"{name}: {value:.4g} {unit} {goal} {holds}", flush=True)

    def costs(self, name: str, cost: Cost, goal: str = "", most: float | None = None) -> None:
        """Add CPU seconds and peak RSS of a process."""
        self.add(f"{name}: CPU", cost.cpu, "s", goal, None if most is None else cost.cpu <= most)
        self.add(f"{name}: peak RSS", cost.peak, "MB")


def rivals(report: Report, box: Path, family: Path, tools: Path | None) -> tuple[Cost | None, Cost | None]:
    """Mergekit's extraction and merge of the same family; None where it cannot be run."""
    recipe = box / "recipe.yml"
    model = f"  - model: {family / 'tuned'}\n    parameters:\n      weight: 1.0\n"
    recipe.write_text(
        f"merge_method: task_arithmetic\nbase_model: {family / 'base'}\ndtype: bfloat16\nmodels:\n{model}"
    )
    commands = {
        "mergekit-extract-lora r16": [
            "mergekit-extract-lora",
            "--model",
            str(family / "tuned"),
            "--base-model",
            str(family / "base"),
            "--out-path",
            str(box / "mergekit-lora"),
            "--max-rank",
            "16",
        ],
        "mergekit task_arithmetic base + 1": ["mergekit-yaml", str(recipe), str(box / "mergekit-merged")],
    }
    costs: list[Cost | None] = []
    for name, (program, *arguments) in commands.items():
        try:
            cost = cost_of(str((tools or Path("/nonexistent")) / program), *arguments)
        except (OSError, subprocess.CalledProcessError):
            report.add(f"{name}: could not be run here", 0.0, "s")
            costs.append(None)
        else:
            report.costs(name, cost)
            costs.append(cost)
    return costs[0], costs[1]


def small(report: Report, box: Path) -> None:
    """Must show 1 and 2: the 0.5B family, the 1B one, and a layer of 8B shape."""
    family, wide, layer = box / "half", box / "one", box / "layer"
    task("build", str(family), "0.5B")
    report.costs("0.5B: read both checkpoints", task("read", str(family)))
    ours = task("extract", str(family), "16")
    report.costs("0.5B: safegene extract r16", ours, "<= 10 s", 10.0)
    bound = 2 * 32000 * 1280 * 4 / 2**20 + 512
    report.add("0.5B: extract, peak RSS of the stream", ours.peak, "MB", f"<= {bound:.0f} MB", ours.peak <= bound)
    task("error", str(family), "16", str(box / "error.json"))
    ratio = json.loads((box / "error.json").read_text())
    report.add("0.5B: error at r16, of the SVD optimum", ratio, "x", "<= 1.003", ratio <= 1.003)
    floor = task("read_write", str(family), str(box / "copy"))
    report.costs("0.5B: read and write one", floor)
    task("adapter", str(family))
    merged = task("merge", str(family), str(box / "merged"))
    report.costs("0.5B: safegene merge", merged)
    factor = merged.cpu / floor.cpu
    report.add("0.5B: merge, of the floor of reading and writing", factor, "x", "<= 2", factor <= 2)
    report.add("0.5B: merge, peak RSS of the stream", merged.peak, "MB", f"<= {bound:.0f} MB", merged.peak <= bound)
    rival = task("peft", str(family), str(box / "peft"))
    report.costs("0.5B: PEFT merge_and_unload and save_pretrained", rival)
    report.add("0.5B: PEFT's merge, of ours", rival.cpu / merged.cpu, "x", ">= 2", rival.cpu >= 2 * merged.cpu)
    theirs = rivals(report, box, family, mergekit(box))
    for name, cost, own, least in (
        ("0.5B: mergekit-extract-lora, of ours", theirs[0], ours, 13),
        ("0.5B: mergekit task_arithmetic, of our merge", theirs[1], merged, 2),
    ):
        if cost is not None:
            report.add(name, cost.cpu / own.cpu, "x", f">= {least}", cost.cpu >= least * own.cpu)
    task("build", str(wide), "1B")
    larger = task("extract", str(wide), "16")
    report.costs("1B: safegene extract r16", larger, f"<= {2 * ours.cpu:.1f} s (2 x 0.5B)", 2 * ours.cpu)
    task("build", str(layer), "8B layer")
    one = task("extract", str(layer), "64")
    report.costs("layer of 8B shape: safegene extract r64", one, "<= 8 s", 8.0)
    report.add("layer of 8B shape: peak RSS below 1 GB", one.peak, "MB", "<= 1024 MB", one.peak <= 1024)


def large(report: Report, box: Path) -> None:
    """Must show 3: the stages of an 8B-shaped family, against the wall time of reading what they read, uncached."""
    ENVIRONMENT.update(OMP_NUM_THREADS=str(os.cpu_count()), MKL_NUM_THREADS=str(os.cpu_count()))
    ENVIRONMENT.update(SAFEGENE_CACHE=str(box / "cache"))
    family = box / "eight"
    task("build", str(family), "8B")
    bound = 2 * 128256 * 4096 * 4 / 2**20 + 512
    evict(family)
    both = task("read", str(family)).wall
    report.add("8B: read both checkpoints, uncached", both, "s wall")
    walls = 0.0
    for name, arguments, reading in (
        ("fetch of both", ("fetch",), both),
        ("extract r16", ("extract_stage", "16"), both),
        ("compress", ("compress",), None),
        ("export as an adapter", ("adapter",), None),
        ("merge", ("merge", str(box / "merged")), both / 2),
    ):
        evict(family)
        cost = task(arguments[0], str(family), *arguments[1:])
        walls += cost.wall
        report.costs(f"8B: {name}", cost)
        report.add(f"8B: {name}: wall", cost.wall, "s wall")
        if reading is not None:
            factor = cost.wall / reading
            report.add(f"8B: {name}, of the time of reading", factor, "x wall", "<= 2", factor <= 2)
        report.add(f"8B: {name}, peak RSS", cost.peak, "MB", f"<= {bound:.0f} MB", cost.peak <= bound)
    factor = walls / (2.5 * both)
    report.add("8B: all five, of the time of reading what they read", factor, "x wall", "<= 2", factor <= 2)


def evict(folder: Path) -> None:
    """Write the files back and drop them from the page cache."""
    os.sync()
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Measure, write ``streams.json`` and publish the section; the 8B rows stay as they are without ``--8b``."""
    report, path = Report(), Path(__file__).with_suffix(".json")
    with tempfile.TemporaryDirectory(prefix="bench-") as box:
        small(report, Path(box))
    if "--8b" in sys.argv:
        with tempfile.TemporaryDirectory(prefix="bench-") as box:
            large(report, Path(box))
    elif path.is_file():
        report.figures += [Figure(**one) for one in json.loads(path.read_text()) if one["name"].startswith("8B: ")]
    text = f"""Random bf16 Llama families of 0.517 B, 1.0 B and 8B shape; one process per row, start-up included; one
thread, at 8B two (rows of 8B: `{LARGE}`). *extract* is the streamed delta with its
energy check, coverage and written factors; merge and fetch also hash what they write or read (sha256).
At 8B, extraction and merge are bound by the two cores, not by reading; tried: sums in
blocks that the core's cache holds, reused buffers, reading ahead and writing behind.

{markdown(report.figures)}"""
    write(path, report.figures)
    publish("engine-streams", "The engine: extraction and merge", header(report.figures[0]), text)
    print(text)


if __name__ == "__main__":
    main()
