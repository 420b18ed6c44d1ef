"""Flow ``build``: validate -> fetch -> degrade -> extract -> compress -> select, once per family."""

from pathlib import Path

from prefect import flow

from flows.shown import run_name, tag_run
from flows.tasks import STAGE_TASKS, exclusive
from safegene.checkpoints.sources import fingerprint
from safegene.pipeline.doctor import require_ready
from safegene.pipeline.table import FAMILY
from safegene.workspace.layout import Workspace
from safegene.workspace.params import save_targets


@flow(name="build", flow_run_name=run_name, persist_result=False)
def build(root: str) -> list[str]:
    """Bring the family's artefacts up to date, and return the stages that ran."""
    tag_run(root, [])
    with exclusive(root):
        require_ready(Workspace(Path(root)), ())
        return build_stages(root)


def build_stages(root: str) -> list[str]:
    """The body of `build`, for flows that hold the lock of the workspace."""
    pin_family(Workspace(Path(root)))
    return [stage.name for stage in FAMILY if STAGE_TASKS[stage.name](root, "")]


def pin_family(ws: Workspace) -> None:
    """Pin the fingerprints of ``family.aligned`` and ``family.degraded`` where they are not pinned yet.

    A pin is never changed here: only the flow ``watch`` follows a source that has changed.
    """
    targets, family = ws.targets, ws.params.family
    pinned = targets.model_copy(
        update={
            "aligned": targets.aligned or fingerprint(family.aligned),
            "degraded": {uri: targets.degraded.get(uri) or fingerprint(uri) for uri in family.degraded},
        }
    )
    if pinned != targets:
        save_targets(ws.targets_file, pinned)
