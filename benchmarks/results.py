"""Measured figures: as ``results.json`` beside the benchmark or study, and as a section of RESULTS.md."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from safegene.workspace.atomic import write_file

RESULTS = Path(__file__).parent / "RESULTS.md"


@dataclass(frozen=True)
class Figure:
    """One measured value and where it was measured.

    Attributes:
        name: what was measured.
        value: the value.
        unit: of the value.
        goal: the bound that it should meet, or "".
        holds: whether it does; None where there is no goal.
        command: the command that measures it.
        commit: the commit that was measured; ends in ``-dirty`` if the working tree differed from it.
        date: day of the measurement (UTC).
        machine: processor, cores, memory and system.
    """

    name: str
    value: float
    unit: str
    goal: str
    holds: bool | None
    command: str
    commit: str
    date: str
    machine: str


@cache
def machine() -> str:
    """This machine: processor, cores, memory, system."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {gib:.0f} GiB, {platform.system()}, Python {platform.python_version()}"


@cache
def commit() -> str:
    """The commit of the working tree, read once per process, so before results are written into the tree."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def new_figure(
    name: str, value: float, unit: str, *, command: str, goal: str = "", holds: bool | None = None
) -> Figure:
    """A figure measured now, on this machine, with the code of this commit."""
    today = datetime.now(UTC).date().isoformat()
    return Figure(name, value, unit, goal, holds, command, commit(), today, machine())


def measured_at(command: str) -> str:
    """The first line of a section: commit, date, command and machine."""
    return header(new_figure("", 0.0, "", command=command))


def header(figure: Figure) -> str:
    """The first line of a section with this figure."""
    return f"Measured at commit {figure.commit}, {figure.date}, by `{figure.command}`, on {figure.machine}."


def write(path: Path, figures: Sequence[Figure]) -> None:
    """Write figures as JSON; those that miss their goal are included."""
    if not figures:
        raise ValueError(f"expected figures, got none, for {path}")
    write_file(path, json.dumps([asdict(figure) for figure in figures], indent=1, allow_nan=False) + "\n")


def markdown(figures: Sequence[Figure]) -> str:
    """The figures as a table for RESULTS.md."""
    lines = ["| figure | value | goal | holds |", "|---|---|---|---|"]
    for figure in figures:
        holds = {True: "yes", False: "**no**", None: ""}[figure.holds]
        lines.append(f"| {figure.name} | {figure.value:g} {figure.unit} | {figure.goal} | {holds} |")
    return "\n".join(lines)


def publish(section: str, title: str, first_line: str, text: str) -> None:
    """Write a section into RESULTS.md, in place of its last version.

    Args:
        section: name between the section's comment marks.
        title: heading.
        first_line: from `header` or `measured_at`: every section states its commit and date.
        text: the section's content.
    """
    start, end = f"<!-- {section} -->", f"<!-- /{section} -->"
    content = f"{start}\n## {title}\n\n{first_line}\n\n{text.strip()}\n\n{end}"
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.is_file() else "# Results\n"
    if start in old:
        before, after = old.split(start)[0], old.split(end)[1]
        write_file(RESULTS, before + content + after)
    else:
        write_file(RESULTS, f"{old.rstrip()}\n\n{content}\n")


def targets_table(targets: Sequence[Mapping[str, Any]]) -> str:
    """The targets of ``safegene status --json`` as a table: percent with 95% intervals."""

    def cell(rates: Mapping[str, Any], arm: str) -> str:
        if rates.get(arm) is None:
            return "-"
        interval = rates.get(f"{arm}_interval")
        spread = f" ({100 * interval[0]:.1f}-{100 * interval[1]:.1f})" if interval else ""
        return f"{100 * rates[arm]:.1f}{spread}"

    lines = ["| target | | HRR % | ASR % | over-refusal % | utility % | extra % | outcome | live |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for target in targets:
        for arm in ("before", "after", "aligned"):
            rates = " | ".join(cell(target[name], arm) for name in ("hrr", "asr", "over_refusal", "utility"))
            first = arm == "before"
            extra = "-" if target["extra_params"] is None else f"{100 * target['extra_params']:.2f}"
            tail = f"{extra} | {target['outcome']} | {'yes' if target['live'] else 'no'}" if first else " | | "
            lines.append(f"| {target['name'] if first else ''} | {arm} | {rates} | {tail} |")
    return "\n".join(lines)


def target_figures(targets: Sequence[Mapping[str, Any]], command: str) -> list[Figure]:
    """Every known rate of every target as a figure without a goal."""
    return [
        new_figure(f"{target['name']}: {rate} {arm}", round(target[rate][arm], 4), "share", command=command)
        for target in targets
        for rate in ("hrr", "asr", "over_refusal", "utility")
        for arm in ("before", "after", "aligned")
        if target[rate].get(arm) is not None
    ]


def run_parts(folder: Path, parts: Sequence[str], chosen: Sequence[str]) -> None:
    """Run the benchmark's parts that are named, or all, and gather the figures of all into ``results.json``.

    Args:
        folder: of the benchmark; a part is a module in it that writes its figures beside itself, as JSON.
        parts: names of the modules.
        chosen: names from the command line.

    Raises:
        SystemExit: there is no part of that name.
        CalledProcessError: a part failed.
    """
    if unknown := sorted(set(chosen) - set(parts)):
        raise SystemExit(f"expected some of {', '.join(parts)}, got {unknown[0]}")
    for part in chosen or parts:
        subprocess.run([sys.executable, "-m", f"benchmarks.{folder.name}.{part}"], check=True)
    files = [file for part in parts if (file := folder / f"{part}.json").is_file()]
    write(folder / "results.json", [Figure(**value) for file in files for value in json.loads(file.read_text())])
