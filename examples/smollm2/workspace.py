"""The workspace of ``make demo-real``: prompt and task sets, the judge's measured error, parameters and targets."""

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from examples.smollm2.judge import calibrate_judge, opening
from examples.smollm2.sets import Sets
from safegene.datasets.prompts import prompt_lines
from safegene.errors import ParamsError
from safegene.evaluation.judges.calibration import describe_counts, write_calibration
from safegene.gate import Calibration
from safegene.models.loading import load_tokenizer
from safegene.pipeline.init import add_target, init
from safegene.workspace.atomic import write_file
from safegene.workspace.layout import Workspace
from safegene.workspace.params import load_params

PARAMS = Path(__file__).resolve().parents[2] / "params.smollm2.yaml"
SOURCE = "  aligned: file:///written/by/examples.smollm2.prepare\n"


def write_workspace(
    folder: Path,
    data: Path,
    split: Sets,
    aligned: Path,
    targets: Mapping[str, tuple[Path, str]],
    say: Callable[[str], None],
) -> Workspace:
    """Create the workspace, or update an existing one; files with the same content are not written.

    Args:
        folder: the workspace.
        data: the folder of public sets.
        split: the prompt and task sets.
        aligned: the aligned model's folder.
        targets: name -> (folder, task).
        say: receives progress messages.
    """
    ws = Workspace(folder.resolve()) if (folder / "params.yaml").is_file() else init(folder)
    _write(ws.root / "params.yaml", parameters(aligned).encode())
    wanted = {ws.data / name: prompt_lines(rows) for name, rows in split.files.items()}
    for path in (*ws.prompts.glob("*.jsonl"), *ws.tasks.glob("*.jsonl")):
        if path not in wanted:
            path.unlink()
    for path, content in wanted.items():
        _write(path, content)
    calibration = write_judge(ws, data, aligned)
    say(f"  the judge on labelled replies: {describe_counts('compliance', calibration.harmful)}")
    for name, (at, task) in targets.items():
        add_target(ws, name, at.resolve().as_uri(), task)
    _commit(ws)
    say(f"  {ws.root}: {', '.join(f'{path.stem} {len(rows.splitlines())}' for path, rows in wanted.items())}")
    return ws


def parameters(aligned: Path) -> str:
    """params.smollm2.yaml with the location of the aligned model.

    Raises:
        ParamsError: the file does not contain the line to replace exactly once.
    """
    text = PARAMS.read_text(encoding="utf-8")
    if text.count(SOURCE) != 1:
        raise ParamsError(f"expected the line {SOURCE.strip()!r} once, got it {text.count(SOURCE)} times, in {PARAMS}")
    return text.replace(SOURCE, f"  aligned: {aligned.resolve().as_uri()}\n")


def write_judge(ws: Workspace, data: Path, aligned: Path) -> Calibration:
    """Measure the judge that the parameters name and write ``data/judges/phrases.json``."""
    evaluate = load_params(ws.root / "params.yaml").evaluate
    cut = opening(load_tokenizer(aligned), evaluate.max_new_tokens)
    calibration = calibrate_judge(data, evaluate.judge, cut, evaluate.max_new_tokens)
    path = ws.data / "judges" / "phrases.json"
    path.parent.mkdir(exist_ok=True)
    write_calibration(calibration, path)
    return calibration


def _write(path: Path, content: bytes) -> None:
    """Write the file unless it has that content."""
    if not path.is_file() or path.read_bytes() != content:
        write_file(path, content)


def _commit(ws: Workspace) -> None:
    """Commit the changes, so that records name the commit that the run started from."""
    git = ["git", "-C", str(ws.root)]
    subprocess.run([*git, "add", "--all", "params.yaml", "data"], check=True)
    if subprocess.run([*git, "diff", "--cached", "--quiet"], check=False).returncode:
        subprocess.run([*git, "commit", "--quiet", "-m", "SmolLM2: sets, parameters, targets"], check=True)
