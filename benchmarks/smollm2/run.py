"""``python -m benchmarks.smollm2.run DIR``: the ordinary flows in the prepared workspace, and the table that they give.

The table goes to the console, the figures to ``benchmarks/smollm2/results.json``, and both into RESULTS.md between two
marks. A target that the gate refuses is a result, not an error.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import ROOT, machine, row, write
from benchmarks.results import commit as measured_commit

COMMAND = "make demo-real"
SAFEGENE = Path(sys.executable).parent / "safegene"
RATES = ("hrr", "asr", "over_refusal", "utility")
ARMS = ("before", "after", "aligned")
START, END = "<!-- smollm2: written by make demo-real -->", "<!-- smollm2: end -->"
GATE_REFUSES = (0, 3, 4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the flows; 0 whatever the gate decides, and when there is nothing prepared."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.smollm2.run", description=__doc__)
    parser.add_argument("workspace", type=Path)
    folder = parser.parse_args(arguments).workspace
    if not (folder / "data" / "judges" / "phrases.json").is_file():
        print(f"skipped: nothing is prepared in {folder} (see the lines above)")
        return 0
    start = time.monotonic()
    done = subprocess.run([str(SAFEGENE), "run"], cwd=folder, check=False)
    if done.returncode not in GATE_REFUSES:
        return done.returncode
    seconds = time.monotonic() - start
    status = json.loads(subprocess.check_output([str(SAFEGENE), "status", "--json"], cwd=folder))["targets"]
    write("smollm2", [*figures(status), row("safegene run", round(seconds), "s", command=COMMAND)])
    publish(section(status, verdicts(folder, status), seconds))
    print(f"benchmarks/smollm2/results.json and benchmarks/RESULTS.md are written; {folder}/reports/index.html")
    return 0


def figures(status: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a rate that was measured."""
    return [
        row(f"{target['name']}: {rate} {arm}", round(target[rate][arm], 4), "share", command=COMMAND)
        for target in status
        for rate in RATES
        for arm in ARMS
        if target[rate][arm] is not None
    ]


def verdicts(folder: Path, status: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Target -> its verdict as recorded."""
    paths = {t["name"]: folder / "data" / "targets" / t["name"] / "verdict" / "verdict.json" for t in status}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.is_file()}


def section(status: Sequence[Mapping[str, Any]], found: Mapping[str, Mapping[str, Any]], seconds: float) -> str:
    """The Markdown table: rates in percent with 95% intervals, and the gate's reason word for word."""
    lines = [
        f"`{COMMAND}`, commit {measured_commit()}, {machine()}; flows {seconds / 60:.0f} min. What is measured is",
        "compliance, by a refusal judge whose error on human labels is in the verdict. Percent, 95% intervals.",
        "",
        "| target | arm | HRR | ASR | over-refusal | utility | extra parameters | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for target in status:
        extra = "-" if target["extra_params"] is None else f"{target['extra_params']:.2%}"
        for arm in ARMS:
            cells = [_cell(target[rate], arm) for rate in RATES]
            ends = [extra, target["outcome"] or "not run"] if arm == "after" else ["", ""]
            lines.append(f"| {' | '.join([target['name'], arm, *cells, *ends])} |")
    lines += ["", *(f"- **{name}**: {verdict['outcome']}: {verdict['reason']}" for name, verdict in found.items())]
    return "\n".join(lines)


def _cell(rates: Mapping[str, Any], arm: str) -> str:
    if rates[arm] is None:
        return "-"
    low, high = rates[f"{arm}_interval"]
    return f"{100 * rates[arm]:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def publish(text: str, path: Path = ROOT / "RESULTS.md") -> None:
    """Put the section between its marks in RESULTS.md, at the end when it is new."""
    old = path.read_text(encoding="utf-8") if path.is_file() else "# Results\n"
    block = f"{START}\n{text}\n{END}"
    if START in old and END in old:
        head, _, rest = old.partition(START)
        path.write_text(head + block + rest.partition(END)[2], encoding="utf-8")
    else:
        path.write_text(f"{old.rstrip()}\n\n## SmolLM2-135M\n\n{block}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
