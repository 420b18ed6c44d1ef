"""``python -m studies.smollm2.run DIR``: run the flows on the prepared workspace and publish the rates.

The table is written for every outcome; a verdict that is not a pass is a result as well.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.results import header, markdown, new_figure, publish, target_figures, targets_table, write

COMMAND = "make demo-real"
SAFEGENE = Path(sys.executable).parent / "safegene"
OUTCOMES = (0, 3, 4)


def main(workspace: Path) -> int:
    """Run, write ``results.json``, publish the section; returns the exit code, 0 also without a prepared workspace."""
    if not (workspace / "params.yaml").is_file():
        print(f"skipped: {workspace} was not prepared")
        return 0
    start = time.monotonic()
    done = subprocess.run([str(SAFEGENE), "run", "--trigger", COMMAND], cwd=workspace, check=False)
    minutes = spent(workspace, (time.monotonic() - start) / 60)
    if done.returncode not in OUTCOMES:
        return done.returncode
    subprocess.run([str(SAFEGENE), "audit", "verify"], cwd=workspace, check=True)
    status = json.loads(subprocess.check_output([str(SAFEGENE), "status", "--json"], cwd=workspace))
    targets = status["targets"]
    name = "the flows, all runs of the workspace together"
    rows = [new_figure(name, round(minutes, 1), "min", command=COMMAND, goal="< 60 min", holds=minutes < 60)]
    verdicts = "\n".join(f"- {t['name']}: {t['outcome']}. {reason(workspace, t['name'])}" for t in targets)
    note = "HRR and ASR are compliance by a phrase judge, not harm: no harm classifier runs, replies are contentless."
    text = f"{note}\n\n{targets_table(targets)}\n\n{verdicts}\n\n{markdown(rows)}"
    write(Path(__file__).with_name("results.json"), rows + target_figures(targets, COMMAND))
    publish("smollm2", "A real language model: SmolLM2-135M", header(rows[0]), text)
    print(text)
    return 0


def spent(workspace: Path, minutes: float) -> float:
    """Minutes of this run and all earlier runs of the workspace, so that a continued run does not look fast."""
    path = workspace / ".safegene" / "flow-minutes"
    total = minutes + (float(path.read_text()) if path.is_file() else 0.0)
    path.write_text(f"{total}\n")
    return total


def reason(workspace: Path, target: str) -> str:
    """The verdict's reason."""
    path = workspace / "data" / "targets" / target / "verdict" / "verdict.json"
    return str(json.loads(path.read_text())["reason"]) if path.is_file() else "not gated"


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
