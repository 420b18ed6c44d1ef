"""The deployments: the schedules, the watch, and the triggers on its events. ``python -m flows.deployments [DIR]``."""

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from flows.server import quiet_environment

quiet_environment("ERROR" if __name__ == "__main__" else "CRITICAL")

from prefect import serve  # noqa: E402 (Prefect reads its settings when imported)
from prefect.events import DeploymentEventTrigger  # noqa: E402
from prefect.types.entrypoint import EntrypointType  # noqa: E402

from flows.audit import audit  # noqa: E402
from flows.automations import heartbeat_seconds, register  # noqa: E402
from flows.drift import drift  # noqa: E402
from flows.realign import realign  # noqa: E402
from flows.watch import DISCOVERED, FAMILY_CHANGED, watch  # noqa: E402
from safegene.workspace.layout import Workspace  # noqa: E402


def deployments(ws: Workspace) -> list[Any]:
    """The deployments of a workspace; their names end in its folder's name, since one server can serve several.

    Clones of one name, on as many machines, serve the same deployments: each run is in the clone of the worker that
    takes it, so ``root`` is the folder that the worker was started in. Flows are named as modules: a path would be
    that of the worker which registered last.
    """
    root, params, named = ".", ws.params, EntrypointType.MODULE_PATH
    here = {"safegene.workspace": ws.root.name}
    tags = ["safegene", f"workspace:{ws.root.name}"]
    one_target = {"root": root, "targets": ["{{ event.payload.target }}"], "trigger": "event"}
    one_target |= {"work": "{{ event.payload.work }}"}
    all_targets = {"root": root, "targets": None, "trigger": "family changed"}
    return [
        realign.to_deployment(
            name=f"scheduled-{ws.root.name}",
            cron=params.flow.cron,
            parameters={"root": root, "trigger": "schedule"},
            tags=tags,
            entrypoint_type=named,
        ),
        realign.to_deployment(
            name=f"discovered-{ws.root.name}",
            parameters={"root": root},
            tags=tags,
            triggers=[_on(DISCOVERED, here, one_target)],
            entrypoint_type=named,
        ),
        realign.to_deployment(
            name=f"family-{ws.root.name}",
            parameters={"root": root},
            tags=tags,
            triggers=[_on(FAMILY_CHANGED, here, all_targets)],
            entrypoint_type=named,
        ),
        watch.to_deployment(
            name=f"watch-{ws.root.name}",
            cron=params.watch.cron,
            parameters={"root": root},
            tags=tags,
            entrypoint_type=named,
        ),
        audit.to_deployment(
            name=f"audit-{ws.root.name}",
            cron=params.flow.audit_cron,
            parameters={"root": root},
            tags=tags,
            entrypoint_type=named,
        ),
        drift.to_deployment(
            name=f"drift-{ws.root.name}",
            cron=params.flow.drift_cron,
            parameters={"root": root, "trigger": "schedule"},
            tags=tags,
            entrypoint_type=named,
        ),
    ]


def _on(event: str, match: dict[str, str], parameters: dict[str, Any]) -> DeploymentEventTrigger:
    """A trigger that starts one run for all events of an hour that announce the same."""
    each, hour = {"prefect.resource.id", "safegene.workspace", "safegene.once"}, timedelta(hours=1)
    return DeploymentEventTrigger(
        name=event, expect={event}, match=match, for_each=each, within=hour, parameters=parameters
    )


def main(folder: str | None = None) -> None:
    """Serve the deployments of a workspace until interrupted, one run at a time."""
    ws = Workspace.find(Path(folder) if folder else None)
    os.chdir(ws.root)
    heartbeat_seconds()
    register(ws)
    serve(*deployments(ws), limit=1)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
