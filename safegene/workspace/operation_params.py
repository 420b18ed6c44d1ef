"""Sections ``promote``, ``watch``, ``flow`` and ``notify`` of ``params.yaml``: where results go, what runs when."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from safegene.workspace.fields import Cron, FilePath, Frozen, Name, Source, Url
from safegene.workspace.places import check_path, check_store


class PromoteParams(Frozen):
    """Where promotions are recorded, and the channel that they are made live in.

    ``ledger`` is ``s3://BUCKET/PREFIX`` or a folder, ``public_key`` a file, see `safegene.workspace.places`.
    ``signatures``: of different persons, that a promotion needs; with more than one it waits for `safegene approve`.
    ``safegene keys require`` pins a least number in ``public_key``. ``on_drift``: what follows when a live release no
    longer passes; a rollback puts live what was live before, as far back as it takes until one passes.
    """

    channel: Name = "production"
    ledger: Annotated[str, AfterValidator(check_store)] = "ledger"
    public_key: Annotated[FilePath, AfterValidator(check_path)] = Path("ledger.pub")
    signatures: Annotated[int, Field(ge=1, le=9)] = 1
    on_drift: Literal["report", "rollback"] = "report"


class WatchParams(Frozen):
    """Where new fine-tunes appear, and the task set that measures them.

    What is new must be the same in two looks, ``settle_seconds`` apart: an upload that goes on is left for the next.
    """

    folders: tuple[Source, ...] = ()
    task: Name | None = None
    cron: Cron = "*/5 * * * *"
    settle_seconds: Annotated[float, Field(ge=0.0, le=3600.0)] = 10.0


class FlowParams(Frozen):
    """When deployments run, whether results are committed and pushed, and what ends a stage that a run started.

    ``push``: data, to the DVC remote. ``push_commits``: the commit too, to the upstream; where another clone was
    first its commits are merged, ``dvc.lock`` by stage (`safegene.pipeline.share`).

    A stage that runs longer than ``max_stage_hours`` is ended. ``max_stage_gibibytes`` bounds its private memory, files
    mapped for writing among it; null leaves it to the machine, which ends the stage before other programs where memory
    runs out.
    """

    cron: Cron = "0 3 * * *"
    audit_cron: Cron = "0 5 * * *"
    drift_cron: Cron = "0 6 * * 0"
    commit: bool = True
    push: bool = False
    push_commits: bool = False
    max_stage_hours: Annotated[float, Field(gt=0, le=1000)] = 168.0
    max_stage_gibibytes: Annotated[float, Field(ge=2)] | None = None


class NotifyParams(Frozen):
    """Whom Prefect tells how a run of a deployment ended.

    ``webhook`` gets a POST with JSON. ``block`` names a notification block of the Prefect server, as KIND/NAME, such as
    ``slack-webhook/team`` or ``sendgrid-email/team``; secrets are in the block, not here.
    """

    when: tuple[Literal["refused", "inconclusive", "waiting", "crashed", "drift"], ...] = (
        "refused",
        "crashed",
        "drift",
    )
    webhook: Url | None = None
    block: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")] | None = None
