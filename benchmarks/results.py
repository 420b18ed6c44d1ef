"""Figures of a benchmark as ``benchmarks/<area>/results.json``: one row a figure, with its command and machine."""

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent


def machine() -> str:
    """The machine in words: processor, cores, memory, system."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {gib:.0f} GiB, {platform.system()}, Python {platform.python_version()}"


def commit() -> str:
    """The commit that was measured; ``-dirty`` if the working tree differs from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def row(
    name: str, value: float, unit: str, *, command: str, goal: str = "", holds: bool | None = None
) -> dict[str, Any]:
    """One figure. ``holds`` is None where there is no goal."""
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "goal": goal,
        "holds": holds,
        "command": command,
        "commit": commit(),
        "machine": machine(),
    }


def write(area: str, rows: list[dict[str, Any]]) -> Path:
    """Write an area's rows, goals that were missed included."""
    if not rows:
        raise ValueError(f"expected figures for {area}, got none")
    path = ROOT / area / "results.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n")
    return path


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table for RESULTS.md."""
    lines = ["| figure | value | goal | holds |", "|---|---|---|---|"]
    for r in rows:
        holds = {True: "yes", False: "**no**", None: ""}[r["holds"]]
        lines.append(f"| {r['name']} | {r['value']:g} {r['unit']} | {r['goal']} | {holds} |")
    return "\n".join(lines)
