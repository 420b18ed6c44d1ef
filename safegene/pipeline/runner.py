"""Two ways to run a stage: directly in this process, or through DVC, which runs it only where it must."""

import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

from safegene.errors import ParamsError, SafegeneError
from safegene.pipeline.process import ERROR_FILE, PARENT, read_error
from safegene.pipeline.table import Stage
from safegene.workspace.costs import note_cost
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import Manifest


def run_stage(stage: Stage, ws: Workspace, target: str = "") -> Manifest | None:
    """Run a stage now, whether or not it must, and give its receipt (None for ``promote``).

    Raises:
        ParamsError: a per-target stage without a known target, or a family stage with one.
        SafegeneError: the stage's own.
    """
    if stage.per_target and target not in ws.targets.targets:
        known = sorted(ws.targets.targets)
        raise ParamsError(
            f"expected one of the targets {known} of {ws.targets_file}, got {target!r}",
            remedy="add it with `safegene target add NAME SOURCE --task TASK`",
        )
    if target and not stage.per_target:
        raise ParamsError(f"expected no target for the family's stage {stage.name!r}, got {target!r}")
    start = time.process_time()
    manifest = stage.run(ws, target)
    if manifest is not None:
        note_cost(ws.root, manifest.digest, stage.address(target), time.process_time() - start)
    for name, copy in (*stage.metrics, *stage.plots):
        view = ws.root / copy.format(target=target)
        view.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ws.root / stage.output.format(target=target) / name, view)
    return manifest


def reproduce(stage: Stage, ws: Workspace, target: str = "") -> bool:
    """Bring a stage up to date through DVC (``dvc repro --single-item``); whether it had to run.

    DVC starts ``safegene STAGE [TARGET]`` as a child, which dies with this process. It is called in this process since
    its command line costs a second a stage, most of it imports.

    Raises:
        SafegeneError: the stage failed; the stage's own error, if the child process reported one.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.WARNING)
    left = error_file(ws)
    left.unlink(missing_ok=True)
    with chdir(ws.root), _child_environment(left), Repo(str(ws.root)) as repo:
        try:
            ran = repo.reproduce(targets=[stage.address(target)], single_item=True)
        except DvcException as error:
            raise _stage_error(stage, target, left, error) from error
    return bool(ran)


def error_file(ws: Workspace) -> Path:
    """Where a stage run as a child leaves its error for the flow."""
    folder = ws.root / ".safegene"
    folder.mkdir(exist_ok=True)
    return folder / "error.json"


@contextmanager
def _child_environment(left: Path) -> Iterator[None]:
    """Our own ``safegene`` first on the path, the die-with-parent flag, and where to leave an error."""
    before = dict(os.environ)
    bin_folder = str(Path(sys.executable).parent)
    os.environ.update(
        PATH=f"{bin_folder}{os.pathsep}{before.get('PATH', '')}",
        SHELL="/bin/sh",
        DVC_NO_ANALYTICS="1",
        **{PARENT: str(os.getpid()), ERROR_FILE: str(left)},
    )
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _stage_error(stage: Stage, target: str, left: Path, error: Exception) -> SafegeneError:
    address = stage.address(target)
    if reported := read_error(left, address):
        return reported
    cause = error.__cause__ or error
    return SafegeneError(
        f"stage {address} failed: {error} ({cause})", remedy="see the messages above; rerun with --debug"
    )
