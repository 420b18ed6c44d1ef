"""Two ways to run a stage: directly in this process, or through DVC, which runs it only if it is out of date."""

import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from pathlib import Path

from safegene.errors import ArtifactError, ParamsError, SafegeneError, SourceError, as_safegene_error
from safegene.pipeline.process import ERROR_FILE, LIMITS, LOG_FILE, PARENT, read_error
from safegene.pipeline.stage_server import ADDRESS, stage_server
from safegene.pipeline.table import Stage, pipeline_of
from safegene.workspace.atomic import write_file
from safegene.workspace.costs import note_cost, work_of
from safegene.workspace.credentials import REMOVED, without_secrets
from safegene.workspace.git import git
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import Manifest, read_manifest
from safegene.workspace.params import Params
from safegene.workspace.seal import is_artefact_sealed

JUDGE_KEYS = ("SAFEGENE_JUDGE_KEY", "SAFEGENE_SERVER_KEY")
HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")

log = logging.getLogger(__name__)


def run_stage(stage: Stage, ws: Workspace, target: str = "") -> Manifest | None:
    """Run a stage in this process, up to date or not, and copy its metrics and plots to where DVC reads them.

    Args:
        stage: the stage.
        ws: the workspace.
        target: the target's name; "" for a stage of the family.

    Returns:
        The manifest of the artefact; None for ``promote``, which writes none.

    Raises:
        ParamsError: a per-target stage without a known target, or a family stage with one.
        SafegeneError: the stage failed.
    """
    if stage.per_target:
        ws.require_target(target)
    if stage.vector and stage.name not in {one.name for one in pipeline_of(ws.params)}:
        other = "is made by degrade, extract, compress and select" if stage.vector == "published" else "is fetched"
        raise ParamsError(
            f"expected a stage of this workspace, whose vector {other}, got {stage.name!r}",
            remedy="set or remove family.vector in params.yaml; `safegene run` runs the stages that follow from it",
        )
    if target and not stage.per_target:
        raise ParamsError(f"expected no target for the family's stage {stage.name!r}, got {target!r}")
    start, begun = time.process_time(), time.monotonic()
    manifest = stage.run(ws, target)
    if manifest is not None:
        took = time.process_time() - start
        clock, work = time.monotonic() - begun, work_of(manifest.facts)
        note_cost(ws.root, manifest.digest, stage.address(target), took, seconds=clock, work=work)
    output = ws.root / stage.output.format(target=target)
    for place, make in (*stage.metrics, *stage.plots):
        write_file(ws.root / place.format(target=target), make(output))
    for name, place in stage.copies:
        write_file(ws.root / place.format(target=target), (output / name).read_bytes())
    return manifest


def reproduce(stage: Stage, ws: Workspace, target: str = "") -> bool:
    """Bring a stage up to date through DVC (``dvc repro --single-item``).

    DVC starts ``safegene STAGE [TARGET]`` as a child process, which ends with this process. DVC itself is called as a
    library, since each start of its command takes a second. The output of a stage that must be sealed, and is not, was
    made elsewhere or edited, whatever DVC knows of it: the stage runs.

    Returns:
        Whether the stage was out of date, or its output not sealed, and it ran.

    Raises:
        SafegeneError: the stage failed; the stage's own error, if the child process reported one.
    """
    _untrack(ws, stage, target)
    try:
        return _reproduce(stage, ws, target)
    except SourceError:  # a stage without credentials copies no checkpoint: this process does
        if not _bring_checkpoints(stage, ws, target):
            raise
    return _reproduce(stage, ws, target)


def _reproduce(stage: Stage, ws: Workspace, target: str) -> bool:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.WARNING)
    address, error_file = stage.address(target), ws.root / ".safegene" / "error.json"
    error_file.parent.mkdir(exist_ok=True)
    error_file.unlink(missing_ok=True)
    params, begun = ws.params, time.monotonic()
    with chdir(ws.root), child_environment(error_file, stage, params), Repo(str(ws.root)) as repo:
        try:
            ran = bool(repo.reproduce(targets=[address], single_item=True))
            if stage.sealed and not _is_sealed(ws.root / stage.output.format(target=target)):
                ran = bool(repo.reproduce(targets=[address], single_item=True, force=True))
            return ran
        except DvcException as error:
            late = time.monotonic() - begun >= _seconds(params)
            raise read_error(error_file, address) or _unreported(address, error, params if late else None) from error


def _bring_checkpoints(stage: Stage, ws: Workspace, target: str) -> bool:
    """Copy the checkpoints that a stage reads into the cache; whether one was missing there."""
    from safegene.checkpoints.record import RECORD
    from safegene.checkpoints.sources.fetching import bring

    folders = [ws.root / name.format(target=target, task="") for name in stage.inputs]
    brought = [bring(folder, ws.params.fetch) for folder in folders if (folder / RECORD).is_file()]
    return any(brought)


def log_file(ws: Workspace) -> Path:
    """Where a stage's process writes its log lines, each after its level, beside printing them."""
    return ws.root / ".safegene" / "stage.log"


def _untrack(ws: Workspace, stage: Stage, target: str) -> None:
    """Take a stage's output out of Git's index, where it is by mistake: DVC would not run the stage. The files stay."""
    from safegene.pipeline.tracked import indexed_artefacts

    output = stage.output.format(target=target)
    if output in indexed_artefacts(ws):
        git(ws.root, "rm", "-r", "--quiet", "--cached", "--", output)
        log.warning("%s is an artefact, which DVC tracks: Git no longer does, from the next commit on", output)


def _is_sealed(output: Path) -> bool:
    """Whether a holder of the cache's key made the artefact in ``output``, as its manifest says which it is."""
    try:
        return is_artefact_sealed(read_manifest(output, verify=False).digest)
    except ArtifactError:
        return False


@contextmanager
def child_environment(error_file: Path, stage: Stage, params: Params) -> Iterator[None]:
    """Environment of a stage's child process: this installation's commands first on PATH, its parent, its error file.

    Credentials are left out, except those that the stage needs: all of them where it copies from a source, the keys of
    judges and model servers, and the Hub's token for a judge's own model. The stage is forked from the stage server of
    this process, where there may be one. DVC runs a stage with ``$SHELL``, and ``dvc.yaml`` is written for a POSIX
    shell.
    """
    before = dict(os.environ)
    commands, server = str(Path(sys.executable).parent), stage_server()
    most = int((params.flow.max_stage_gibibytes or 0) * (1 << 30))
    os.environ.clear()
    os.environ.update(_credentials_removed(before, stage, params))
    os.environ.update({ADDRESS: server.address} if server else {})
    os.environ.update(
        PATH=f"{commands}{os.pathsep}{before.get('PATH', '')}",
        SHELL="/bin/sh",
        DVC_NO_ANALYTICS="1",
        **{PARENT: str(os.getpid()), ERROR_FILE: str(error_file), LOG_FILE: str(error_file.with_name("stage.log"))},
        **{LIMITS: f"{_seconds(params)} {most}"},
    )
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _credentials_removed(environment: Mapping[str, str], stage: Stage, params: Params) -> dict[str, str]:
    if stage.credentials == "all" or (stage.vector == "made" and params.family.degraded):
        return dict(environment)
    judges = [judge for judge in (params.evaluate.judge, params.evaluate.adjudicator) if judge]
    hub = HUB_TOKENS if any(judge.revision for judge in judges) else ()
    kept = (*JUDGE_KEYS, *hub) if stage.credentials == "judge" else ()
    return {**without_secrets(environment, kept), REMOVED: "1"}


def _seconds(params: Params) -> int:
    return math.ceil(params.flow.max_stage_hours * 3600)


def _unreported(address: str, error: Exception, late: Params | None) -> SafegeneError:
    cause = error.__cause__ or error
    if isinstance(cause, OSError) or "disk is full" in str(cause):
        return as_safegene_error(cause)
    remedy = f"read the messages above, then run `safegene --debug {address.replace('@', ' ')}`"
    if late:
        hours = late.flow.max_stage_hours
        remedy = f"it was ended after flow.max_stage_hours ({hours:g}) of params.yaml: raise that, or {remedy}"
    return SafegeneError(f"expected stage {address} to succeed, got {error} ({cause})", remedy=remedy)
