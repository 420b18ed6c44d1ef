"""On a real Prefect server: one event a hundred times starts one run, and people are told how runs ended."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

import pytest

from flows.server import quiet_environment
from tests.factories.commands import ask, until
from tests.factories.ledger import make_workspace

quiet_environment()

from prefect import flow, tags  # noqa: E402 (Prefect reads its settings when imported)
from prefect.client.orchestration import SyncPrefectClient, get_client  # noqa: E402
from prefect.client.schemas.objects import State  # noqa: E402
from prefect.settings import PREFECT_API_URL, temporary_settings  # noqa: E402
from prefect.states import Completed, Running  # noqa: E402

from flows import automations  # noqa: E402
from flows.deployments import deployments  # noqa: E402
from flows.server import send_queued  # noqa: E402
from flows.watch import DISCOVERED, _emit  # noqa: E402
from safegene.workspace.layout import Workspace  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
T = TypeVar("T")


@pytest.fixture(scope="module")
def api(full_server: str) -> Iterator[str]:
    with temporary_settings({PREFECT_API_URL: full_server}):
        yield full_server


@pytest.fixture(scope="module")
def told() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a listener, and what it was sent."""
    sent: list[dict[str, Any]] = []

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/hook", sent
        server.shutdown()


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory, told: tuple[str, list[dict[str, Any]]]) -> Workspace:
    made = make_workspace(tmp_path_factory.mktemp("told") / "team-a")
    path = made.root / "params.yaml"
    path.write_text(f"{path.read_text()}notify: {{webhook: '{told[0]}', when: [refused, crashed]}}\n")
    return made


def registered(ws: Workspace) -> set[str]:
    """The names of the workspace's automations: the server has those of other tests too."""
    with get_client(sync_client=True) as client:
        names = {one.name for one in client.read_automations()}
    return {name for name in names if name.startswith(f"safegene {ws.root.name}: ")}


def end(ws: Workspace, state: Callable[[], State[Any]]) -> None:
    """A run of the workspace that ends in a state."""

    @flow(name="realign", flow_run_name="realign sentiment", persist_result=False)
    def ended() -> State[Any]:
        return state()

    with tags("safegene", f"workspace:{ws.root.name}", "target:sentiment"):
        ended(return_state=True)
    send_queued()


def said_again(say: Callable[[], None], heard: Callable[[], T]) -> Callable[[], T]:
    """Asks ``heard``, and says it at first and every 90 s: a busy server may not have read its automations before."""
    last = list[float]()

    def asked() -> T:
        if not last or time.monotonic() - last[-1] > 90:
            say()
            last.append(time.monotonic())
        return heard()

    return asked


def test_people_are_told_of_what_they_chose(api: str, ws: Workspace, told: tuple[str, list[dict[str, Any]]]) -> None:
    assert len(automations.register(ws)) == 3
    assert len(automations.register(ws)) == 3, "made again, not twice"
    assert len(registered(ws)) == 3

    def crash() -> State[Any]:
        raise ValueError("something broke")

    end(ws, lambda: Completed(name="Promoted", message="sentiment pass"))
    end(ws, lambda: Completed(name="Refused", message="sentiment fail: harm"))
    end(Workspace(ws.root.parent / "team-b"), lambda: Completed(name="Refused", message="of others"))
    end(ws, crash)

    def heard() -> list[dict[str, Any]]:
        return [one for one in told[1] if one["run"] == "realign sentiment"]  # not the silent run of another test

    until(lambda: len(heard()) >= 2, 120, "the webhook to be called twice")
    time.sleep(5)  # what should not come would have come by now
    assert sorted(one["state"] for one in heard()) == ["Failed", "Refused"]
    (refused,) = (one for one in heard() if one["state"] == "Refused")
    assert refused["message"] == "sentiment fail: harm"
    assert (refused["workspace"], refused["run"]) == ("team-a", "realign sentiment")
    assert "target:sentiment" in refused["targets"]


def test_an_automation_that_is_as_it_should_be_stays(api: str, ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a change the server forgets the runs that it watches: that of the worker that was killed, and registers."""
    before = automations.register(ws)
    monkeypatch.setattr(SyncPrefectClient, "update_automation", lambda *_: pytest.fail("changed"))
    assert automations.register(ws) == before


def test_an_automation_goes_with_its_reason(api: str, ws: Workspace) -> None:
    path = ws.root / "params.yaml"
    text = path.read_text()
    path.write_text(text.replace("when: [refused, crashed]", "when: [refused]"))
    assert len(automations.register(Workspace(ws.root))) == 2
    assert registered(ws) == {"safegene team-a: silent runs", "safegene team-a: refused"}
    path.write_text(text)


def test_a_run_without_a_sign_of_life_becomes_crashed(api: str, ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process was killed: the heartbeat, by Prefect's own event, was the last that anybody heard of it."""
    monkeypatch.setenv(automations.HEARTBEAT, "4")
    automations.register(ws)

    @flow(name="realign", persist_result=False)
    def silent() -> None:
        pass

    from prefect.events import emit_event

    with get_client(sync_client=True) as client:
        run = client.create_flow_run(silent, state=Running(), tags=["safegene", f"workspace:{ws.root.name}"])
        related = [{"prefect.resource.id": f"prefect.tag.workspace:{ws.root.name}", "prefect.resource.role": "tag"}]
        resource = {"prefect.resource.id": f"prefect.flow-run.{run.id}"}
        time.sleep(12)  # the server reads its automations in the background

        def heartbeat() -> None:
            emit_event(event="prefect.flow-run.heartbeat", resource=resource, related=related)
            send_queued()

        crashed = said_again(heartbeat, lambda: client.read_flow_run(run.id).state_name == "Crashed")
        until(crashed, 300, "the silent run to be Crashed")


def test_the_same_event_a_hundred_times_starts_one_run(api: str, ws: Workspace) -> None:
    (discovered,) = (one for one in deployments(ws) if one.name.startswith("discovered"))
    number = discovered.apply()

    def runs() -> list[dict[str, Any]]:
        body = {"deployments": {"id": {"any_": [str(number)]}}}
        found: list[dict[str, Any]] = ask(f"{api}/flow_runs/filter", body)
        return found

    def discover() -> None:
        for _ in range(100):
            _emit(ws, DISCOVERED, "sentiment", "sha256:1", work="sha256:2", tries=1)
        send_queued()

    time.sleep(12)
    until(said_again(discover, runs), 300, "the event's run")
    time.sleep(10)  # a hundred runs would have been made by now
    (run,) = runs()
    assert run["parameters"]["work"] == "sha256:2"
    assert run["parameters"]["targets"] == ["sentiment"]
    _emit(ws, DISCOVERED, "sentiment", "sha256:1", work="sha256:2", tries=2)
    send_queued()
    until(lambda: len(runs()) == 2, 120, "the run of the next try")
