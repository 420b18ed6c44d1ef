"""What the Prefect server does by itself for a workspace: it notifies people, and ends runs that fell silent.

Each is an automation of Prefect, which `safegene deploy` makes what section ``notify`` of ``params.yaml`` says. One
that is so already stays as it is: the server would forget the runs that it watches, such as those of the worker that
was killed and starts again. An automation whose reason is gone from the section is removed.
"""

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

from safegene.errors import SafegeneError
from safegene.workspace.layout import Workspace

HEARTBEAT = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
HEARTBEAT_SECONDS = 30
MISSED = 4
"""Heartbeats that a run may leave out before its run is Crashed; fewer than three would end live runs."""
STATES = {
    "refused": ("Refused",),
    "inconclusive": ("Inconclusive",),
    "waiting": ("Waiting for approval",),
    "crashed": ("Failed", "Crashed"),
    "drift": ("Drifted",),
}
"""What ``notify.when`` may name -> the final states of runs that it means."""
BODY = "{{ flow_run.name }}: {{ flow_run.state.name }}. {{ flow_run.state.message or '' }}\n{{ flow_run|ui_url }}"


def register(ws: Workspace) -> list[str]:
    """Make the workspace's automations on the configured server what ``params.yaml`` says; their names.

    Raises:
        SafegeneError: the block that ``notify.block`` names is not on the server.
    """
    with get_client(sync_client=True) as client:
        wanted = [silent_runs(ws), *notifications(ws, list(_actions(ws, client)))]
        known = {one.name: one for name in all_names(ws) for one in client.read_automations_by_name(name)}
        for automation in wanted:
            present = known.pop(automation.name, None)
            if present is None:
                client.create_automation(automation)
            elif AutomationCore.model_validate(present.model_dump()) != automation:
                client.update_automation(present.id, automation)
        for left in known.values():
            client.delete_automation(left.id)
    return [automation.name for automation in wanted]


def all_names(ws: Workspace) -> list[str]:
    """The names of all automations that a workspace may have."""
    return [_name(ws, word) for word in ("silent runs", *STATES)]


def silent_runs(ws: Workspace) -> AutomationCore:
    """A run whose process is gone, without a word, becomes Crashed: it holds no slot, and people are told.

    Any event of the run counts as a sign of life, its final state too, whatever its name.
    """
    trigger = EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.*"},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=_of(ws),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=MISSED * heartbeat_seconds()),
    )
    crashed = ChangeFlowRunState(
        state=StateType.CRASHED, name="Crashed", message=f"its process gave no sign of life for {trigger.within}"
    )
    return AutomationCore(name=_name(ws, "silent runs"), trigger=trigger, actions=[crashed])


def notifications(ws: Workspace, actions: list[Any]) -> list[AutomationCore]:
    """An automation with these actions for each reason in ``notify.when``; none where there are no actions."""
    return [
        AutomationCore(
            name=_name(ws, reason),
            trigger=EventTrigger(
                expect={f"prefect.flow-run.{state}" for state in STATES[reason]},
                match={"prefect.resource.id": "prefect.flow-run.*"},
                match_related=_of(ws),
                for_each={"prefect.resource.id"},
                posture=Posture.Reactive,
                threshold=1,
                within=timedelta(0),
            ),
            actions=actions,
        )
        for reason in ws.params.notify.when
        if actions
    ]


def heartbeat_seconds() -> int:
    """Seconds between the heartbeats of a run; sets them for the runs of this process where nobody has."""
    return int(os.environ.setdefault(HEARTBEAT, str(HEARTBEAT_SECONDS)))


def _actions(ws: Workspace, client: SyncPrefectClient) -> Iterator[Any]:
    params = ws.params.notify
    if params.webhook is not None:
        payload = ", ".join(f'"{key}": {{{{ ({value}) | tojson }}}}' for key, value in _said(ws).items())
        saved = Webhook(url=params.webhook).save(_block(ws), overwrite=True)
        yield CallWebhook(block_document_id=saved, payload="{" + payload + "}")
    if params.block is not None:
        kind, _, name = params.block.partition("/")
        try:
            block = client.read_block_document_by_name(name, kind)
        except ObjectNotFound:
            raise SafegeneError(
                f"expected the block {params.block} of notify.block on the Prefect server, got none",
                remedy=f"make it, in Prefect's pages or with `prefect block create {kind}`",
            ) from None
        yield SendNotification(block_document_id=block.id, subject=f"safegene {ws.root.name}", body=BODY)


def _said(ws: Workspace) -> dict[str, str]:
    """Key of the webhook's JSON -> expression of its value."""
    return {
        "workspace": f"'{ws.root.name}'",
        "run": "flow_run.name",
        "state": "flow_run.state.name",
        "message": "flow_run.state.message or ''",
        "targets": "flow_run.tags | join(' ')",
        "url": "flow_run | ui_url",
    }


def _of(ws: Workspace) -> dict[str, str | list[str]]:
    return {"prefect.resource.id": f"prefect.tag.workspace:{ws.root.name}", "prefect.resource.role": "tag"}


def _name(ws: Workspace, word: str) -> str:
    return f"safegene {ws.root.name}: {word}"


def _block(ws: Workspace) -> str:
    return "safegene-" + "".join(c if c.isalnum() else "-" for c in ws.root.name.lower()) + "-webhook"
