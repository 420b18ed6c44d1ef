"""Flow ``build``: validate -> fetch -> degrade -> extract -> compress -> select, once per family.

Where ``family.vector`` is set: validate -> fetch -> fetch-vector.
"""

from pathlib import Path

from prefect import flow

from flows.shown import run_name, tag_run
from flows.tasks import STAGE_TASKS, exclusive
from safegene.checkpoints.sources import fingerprint
from safegene.pipeline.doctor import require_ready
from safegene.pipeline.stage_file import write_stages
from safegene.pipeline.table import pipeline_of
from safegene.workspace.layout import Workspace
from safegene.workspace.params import FamilyParams, save_targets


@flow(name="build", flow_run_name=run_name, persist_result=False)
def build(root: str) -> list[str]:
    """Bring the family's artefacts up to date, and return the stages that ran."""
    root = str(Path(root).resolve())
    tag_run(root, [])
    with exclusive(root):
        require_ready(Workspace(Path(root)), ())
        return build_stages(root)


def build_stages(root: str) -> list[str]:
    """The body of `build`, for flows that hold the lock of the workspace."""
    ws = Workspace(Path(root))
    pin_family(ws)
    write_stages(ws)
    family = (stage for stage in pipeline_of(ws.params) if not stage.per_target)
    return [stage.name for stage in family if STAGE_TASKS[stage.name](root, "")]


def pin_family(ws: Workspace) -> None:
    """Pin the fingerprints of ``family.aligned``, ``degraded`` and ``vector`` where they are not pinned yet.

    A pin is never changed here: only the flow ``watch`` follows a source that has changed.
    """
    targets, family = ws.targets, ws.params.family
    pinned = targets.model_copy(
        update={
            "aligned": targets.aligned or fingerprint(family.aligned),
            "vector": vector_pin(family, targets.vector),
            "degraded": {uri: targets.degraded.get(uri) or fingerprint(uri) for uri in family.degraded},
        }
    )
    if pinned != targets:
        save_targets(ws.targets_file, pinned)


def vector_pin(family: FamilyParams, pinned: str | None = None) -> str | None:
    """The pin of ``family.vector``, by default what its place holds now; None where the vector is made here."""
    if family.vector is None or family.publisher is None:
        return None
    from safegene.ledger.bundle_source import bundle_fingerprint  # with torch, which no other part of a flow needs

    return pinned or bundle_fingerprint(family.vector, family.publisher)
