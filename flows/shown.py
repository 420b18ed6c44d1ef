"""What people see of a run in Prefect's user interface: its name, tags and final state, log lines, and artifacts."""

import base64
import logging
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from prefect.artifacts import create_image_artifact, create_link_artifact, create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed

from safegene.errors import SafegeneError
from safegene.report.state import TargetState, read_state
from safegene.report.words import describe_target
from safegene.version import __version__
from safegene.workspace.atomic import write_optional
from safegene.workspace.digest import PREFIX, digest_bytes, digest_json
from safegene.workspace.layout import Workspace

STATES = {"fail": "Refused", "inconclusive": "Inconclusive", "pending": "Waiting for approval"}
"""Outcome -> name of the run's final state; of several the first here decides. All in `LIVE`: `PROMOTED`."""
LIVE, PROMOTED = frozenset({"pass", "override"}), "Promoted"


def run_name() -> str:
    """``FLOW TARGETS in WORKSPACE``, of the parameters of the run."""
    given = flow_run.parameters
    targets = given.get("targets") or (["all targets"] if "targets" in given else [])
    words = [str(flow_run.flow_name), ", ".join(targets), f"in {Path(str(given['root'])).resolve().name}"]
    return " ".join(word for word in words if word)


def tag_run(root: str, targets: Sequence[str]) -> None:
    """Tag the present run with its workspace and its targets, so that runs can be filtered by them."""
    if not flow_run.id:
        return
    tags = ["safegene", f"workspace:{Path(root).name}", *(f"target:{name}" for name in targets)]
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, tags=sorted({*tags, *flow_run.tags}))


def final_state(ws: Workspace, outcomes: Mapping[str, str], promotes: bool = True) -> State[dict[str, str]]:
    """The final state of a run without errors, named by its worst outcome, with each target's reason as its message.

    A refusal is a result, so the type is COMPLETED; FAILED and CRASHED mean that somebody must repair something.
    """
    good = PROMOTED if promotes else "Passed"
    rest = good if outcomes and LIVE.issuperset(outcomes.values()) else "Undecided" if outcomes else "No targets"
    worst = next((name for outcome, name in STATES.items() if outcome in outcomes.values()), rest)
    why = dict[str, str]()
    with suppress(SafegeneError, OSError):  # what has been decided stands all the same
        why = {target.name: describe_target(target).sentence for target in read_state(ws, targets=[*outcomes]).targets}
    lines = [f"{name} {outcome}: {why.get(name, '')}" for name, outcome in outcomes.items()]
    return Completed(name=worst, message="\n".join(lines) or "no targets", data=dict(outcomes))


@contextmanager
def stage_log(path: Path) -> Iterator[None]:
    """Send the lines that a stage's process writes to ``path`` to the log of the present task, as they come."""
    logger, done = get_run_logger(), threading.Event()
    path.unlink(missing_ok=True)  # of the stage before

    def follow() -> None:
        sent = 0
        while True:
            ended = done.wait(1.0)
            text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
            whole = text if ended else text[: text.rfind("\n") + 1]
            for line in whole[sent:].splitlines():
                first, _, rest = line.partition(" ")
                level = logging.getLevelNamesMapping().get(first)
                logger.log(level or logging.INFO, "%s", line if level is None else rest)
            sent = len(whole)
            if ended:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def show_targets(ws: Workspace, names: Sequence[str], report: Path) -> None:
    """An artifact for each target: the decision, its rates with n and intervals, and the evidence as a picture."""
    create_link_artifact(link=report.as_uri(), link_text="report", key=_key(ws, "report"), description="The report")
    for target in read_state(ws, targets=names).targets:
        key = _key(ws, "target", target.name)
        create_markdown_artifact(markdown=_markdown(target, report), key=key, description=target.name)
        if picture := _evidence(ws, target):
            data = base64.b64encode(picture.encode()).decode()
            create_image_artifact(image_url=f"data:image/svg+xml;base64,{data}", key=f"{key}-evidence")


def _key(ws: Workspace, *words: str) -> str:
    """An artifact's key, which Prefect limits to ``[a-z0-9-]``; with the workspace, since a server has many."""
    return "-".join(re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in ("safegene", ws.root.name, *words))


def _markdown(target: TargetState, report: Path) -> str:
    from safegene.report import rates_markdown

    decision = describe_target(target)
    lines = [f"**{decision.word}**: {decision.sentence}", "", *rates_markdown(target), "", f"Report: {report}"]
    return "\n".join(lines) + "\n"


def _evidence(ws: Workspace, target: TargetState) -> str:
    """The picture of a usable verdict's evidence, drawn once; "" where there is none."""
    from safegene.gate import evidence_from
    from safegene.report.evidence import draw

    if target.verdict is None:
        return ""
    folder, policy = ws.judgements(target.name), ws.params.gate
    try:
        plan, judgements = ((folder / name).read_bytes() for name in ("plan.json", "judgements.jsonl"))
        drawn_from = [__version__, policy.model_dump(mode="json"), digest_bytes(plan), digest_bytes(judgements)]
        kept = ws.root / ".safegene" / "pictures" / f"{digest_json(drawn_from).removeprefix(PREFIX)}.svg"
        if kept.is_file():
            return kept.read_text(encoding="utf-8")
        picture = str(draw(*evidence_from(plan, judgements, where=str(folder)), policy))
    except (SafegeneError, OSError):
        return ""
    write_optional(kept, picture)
    return picture
