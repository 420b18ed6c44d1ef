"""One Prefect task per stage, and the tasks around them: pin, promote, report, commit, push.

A task runs its stage through DVC (``dvc repro --single-item``), so that ``dvc.lock`` states what every record relies
on. Only the fetch stages and the push are retried. Prefect caches no results: DVC decides what must run.
"""

import base64
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from prefect import Task, task
from prefect.artifacts import create_image_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from rich.console import Console

from flows.shown import show_targets, stage_log
from safegene.errors import SafegeneError, SourceError
from safegene.pipeline.runner import log_file, reproduce
from safegene.pipeline.share import share_commits, update_clone
from safegene.pipeline.table import PIPELINE, Stage
from safegene.pipeline.tracked import committed_artefacts, tracked_files
from safegene.workspace.git import commit_files
from safegene.workspace.layout import Workspace
from safegene.workspace.plain_yaml import load_yaml

console = Console(stderr=True, highlight=False)


def _source_failed(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether the task ended in a SourceError, which a retry may mend; any other error would come again."""
    try:
        state.result(raise_on_failure=True)
    except SourceError:
        return True
    except Exception:
        return False
    return False


def _stage_task(stage: Stage) -> Task[[str, str], bool]:
    retried = stage.name.startswith("fetch")

    @task(
        name=stage.name,
        task_run_name=f"{stage.name} {{target}}" if stage.per_target else stage.name,
        retries=2 if retried else 0,
        retry_delay_seconds=[5, 30],
        retry_condition_fn=_source_failed if retried else None,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def run(root: str, target: str = "") -> bool:
        start, ws = time.monotonic(), Workspace(Path(root))
        with stage_log(log_file(ws)):
            ran = reproduce(stage, ws, target)
        took = f"{time.monotonic() - start:5.1f} s" if ran else "unchanged"
        get_run_logger().info("%s: %s", stage.address(target), took.strip())
        console.print(f"  [green]ok[/] {stage.address(target):<28} [dim]{took}[/]")
        return ran

    return run


STAGE_TASKS: dict[str, Task[[str, str], bool]] = {s.name: _stage_task(s) for s in PIPELINE if s.tracked}


@task(name="pin-incumbent", task_run_name="pin-incumbent {target}", cache_policy=NO_CACHE, persist_result=False)
def pin_incumbent(root: str, target: str) -> str | None:
    """Write what is live for the target to ``incumbent.json``, on which ``evaluate`` depends; return its digest."""
    from safegene.pipeline.stages.promote import pin_incumbent

    return pin_incumbent(Workspace(Path(root)), target)


@task(name="promote", task_run_name="promote {target}", cache_policy=NO_CACHE, persist_result=False)
def promote(root: str, target: str, run: dict[str, str]) -> str:
    """Record the attempt, promote if the verdict allows it, and return the outcome; never retried."""
    from safegene.pipeline.stages.promote import promote_attempt

    outcome = promote_attempt(Workspace(Path(root)), target, run=run)
    colour = {"pass": "green", "fail": "red"}.get(outcome, "yellow")
    get_run_logger().info("%s: %s", target, outcome)
    console.print(f"  [{colour}]{outcome}[/] promote@{target}")
    return outcome


@task(name="publish", cache_policy=NO_CACHE, persist_result=False)
def publish(root: str, names: Sequence[str] = ()) -> str:
    """Write the report and return its path; show verdicts, the named targets and the layer scores in Prefect's UI."""
    from safegene.report import write_markdown, write_report

    ws = Workspace(Path(root))
    create_markdown_artifact(markdown=write_markdown(ws), key="safegene-verdicts", description="Verdicts")
    picture = ws.selection / "scores.png"
    if picture.is_file():
        data = base64.b64encode(picture.read_bytes()).decode()
        create_image_artifact(image_url=f"data:image/png;base64,{data}", key="safegene-layer-scores")
    report = write_report(ws)
    show_targets(ws, names, report)
    return str(report)


@task(name="push", retries=2, retry_delay_seconds=[5, 30], cache_policy=NO_CACHE, persist_result=False)
def push(root: str) -> None:
    """Run ``dvc push``, then check that the remote holds every output, since a push of missing files is no error.

    Raises:
        SafegeneError: the remote lacks an object after the push.
    """
    from dvc.repo import Repo

    with Repo(root) as repo, _not_run_yet():
        repo.push()
        found = repo.status(cloud=True)
    missing = [name for name, state in found.items() if state != "deleted"]  # that word: on the remote, and not here
    if missing:
        raise SafegeneError(f"expected every output on the DVC remote after the push, got {len(missing)} missing")


@contextmanager
def _not_run_yet() -> Iterator[None]:
    """Leave out DVC's warning of outputs that ``dvc.lock`` does not name, of targets that no run has evaluated yet.

    There is nothing to push. DVC's advice, ``dvc commit``, would record what no stage has made.
    """

    def other(record: logging.LogRecord) -> bool:
        return "is missing version info" not in record.getMessage()

    logger = logging.getLogger("dvc.output")
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


@task(name="commit", cache_policy=NO_CACHE, persist_result=False)
def commit(root: str, message: str) -> str:
    """Commit what a run wrote for Git, and the user's data; return the head commit.

    See `safegene.pipeline.tracked.tracked_files` for what that is. Artefacts are DVC's: an earlier commit may hold one,
    which would stop DVC, so it is taken out.
    """
    ws = Workspace(Path(root))
    return commit_files(ws.root, message, tracked_files(ws), untracked=committed_artefacts(ws))


def update(root: str) -> None:
    """Merge what other clones have pushed, where this one shares its commits."""
    ws = Workspace(Path(root))
    if ws.params.flow.push_commits and (again := update_clone(ws)):
        console.print(f"  [yellow]made again[/] what others changed too: {', '.join(again)}", soft_wrap=True)


def pull(root: str, names: Sequence[str]) -> None:
    """Fetch the outputs of the family and of targets that another clone has made; what cannot be had is made again."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    ws = Workspace(Path(root))
    lock = ws.root / "dvc.lock"
    if not (ws.params.flow.push_commits and ws.params.flow.push and lock.is_file()):
        return
    made = load_yaml(lock).get("stages") or {}
    wanted = [stage for stage in made if stage.partition("@")[2] in ("", *names)]
    with suppress(DvcException), Repo(root) as repo:
        repo.pull(targets=wanted)


@task(name="share", cache_policy=NO_CACHE, persist_result=False)
def share(root: str) -> str:
    """Push the commit to the branch's upstream, see `safegene.pipeline.share`; a sentence on what was done."""
    shared = share_commits(Workspace(Path(root)))
    if not shared.upstream:
        return "not pushed: the branch has no upstream; `git push --set-upstream REMOTE BRANCH` gives it one"
    merged = f", after {shared.merges} merges" if shared.merges else ""
    again = f"; others changed too, and counts as theirs: {', '.join(shared.again)}" if shared.again else ""
    get_run_logger().info("pushed to %s%s%s", shared.upstream, merged, again)
    return f"pushed to {shared.upstream}{merged}{again}"


@contextmanager
def exclusive(root: str) -> Iterator[None]:
    """Hold the lock of a workspace for the block; a second run prints that it waits, and waits.

    DVC's own lock does not wait: the second run would fail, with outputs that ``dvc.lock`` does not name.
    """
    lock = FileLock(Path(root) / ".safegene" / "run.lock")
    Path(lock.lock_file).parent.mkdir(exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        console.print(f"[yellow]waiting[/] for another run in {root}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
