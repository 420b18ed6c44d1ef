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


def publish(area: str, title: str, text: str) -> Path:
    """Put an area's section into RESULTS.md, in place of its last one."""
    path = ROOT / "RESULTS.md"
    start, end = f"<!-- {area} -->", f"<!-- /{area} -->"
    section = f"{start}\n## {title}\n\n{text.strip()}\n\n{end}"
    old = path.read_text(encoding="utf-8") if path.is_file() else "# Results\n"
    if start in old:
        before, after = old.split(start)[0], old.split(end)[1]
        path.write_text(before + section + after, encoding="utf-8")
    else:
        path.write_text(f"{old.rstrip()}\n\n{section}\n", encoding="utf-8")
    return path


def targets_table(targets: list[dict[str, Any]]) -> str:
    """``safegene status --json``'s targets as a table: percent with 95% intervals."""

    def cell(rates: dict[str, Any], arm: str) -> str:
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


def target_rows(targets: list[dict[str, Any]], command: str) -> list[dict[str, Any]]:
    """Every known rate of every target as a row without a goal."""
    return [
        row(f"{target['name']}: {rate} {arm}", round(target[rate][arm], 4), "share", command=command)
        for target in targets
        for rate in ("hrr", "asr", "over_refusal", "utility")
        for arm in ("before", "after", "aligned")
        if target[rate].get(arm) is not None
    ]
