"""The mirror in MLflow's registry, against a server that keeps what MLflow's REST API was seen to answer."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from safegene.errors import LedgerError, StoreError
from safegene.ledger.exports.mlflow import register, registry_versions
from safegene.workspace.layout import Workspace
from tests.factories.commands import call
from tests.factories.ledger import TARGET, attempt, live_digest, make_workspace, records


class Registry(HTTPServer):
    """Registered models, their versions and aliases."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: dict[str, list[dict[str, Any]]] = {}
        self.aliases: dict[tuple[str, str], str] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        name = body.get("name", TARGET)
        if path == "registered-models/create":
            if name in self.models:
                return 400, {"error_code": "RESOURCE_ALREADY_EXISTS", "message": "there"}
            self.models[name] = []
        if path == "model-versions/create":
            self.models[name].append({"version": str(len(self.models[name]) + 1), "tags": body["tags"]})
            return 200, {"model_version": self.models[name][-1]}
        if path == "registered-models/alias":
            self.aliases[name, body["alias"]] = body["version"]
        if path == "model-versions/search":
            return 200, {"model_versions": self.models[name]}
        return 200, {}


class Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_POST(self) -> None:  # noqa: N802
        self._send(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def do_GET(self) -> None:  # noqa: N802
        self._send({})

    def _send(self, body: dict[str, Any]) -> None:
        status, answer = self.server.answer(urlsplit(self.path).path.removeprefix("/api/2.0/mlflow/"), body)
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[Registry]:
    server = Registry()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    ws = make_workspace(tmp_path / "ws")
    assert attempt(ws) == attempt(ws, alpha=0.5) == "pass"
    return ws


def test_releases_are_versions_and_channels_are_aliases_once(ws: Workspace, registry: Registry) -> None:
    assert "2 of them new" in call(ws.root, "audit", "export", "mlflow", "--to", registry.url).stdout
    first, second = registry.models[TARGET]
    tags = {tag["key"]: tag["value"] for tag in second["tags"]}
    assert tags["safegene.release"] == live_digest(ws)
    assert tags["safegene.record"] == records(ws)[0].digest
    assert registry.aliases == {(TARGET, "production"): "2"}
    call(ws.root, "rollback", TARGET)
    assert "0 of them new" in call(ws.root, "audit", "export", "mlflow", "--to", registry.url).stdout
    assert registry.aliases == {(TARGET, "production"): "1"}
    assert registry.models[TARGET] == [first, second]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nonsense", "http://user:secret@127.0.0.1:9"])
def test_a_server_that_does_not_answer_is_one_sentence_without_secrets(ws: Workspace, url: str) -> None:
    with pytest.raises(StoreError, match="expected an MLflow server to answer") as raised:
        register(registry_versions(records(ws), store="ledger"), url)
    assert "secret" not in raised.value.message


def test_a_refusal_of_the_server_is_named(ws: Workspace, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "answer", lambda *_: (403, {"error_code": "PERMISSION_DENIED", "message": "no"}))
    with pytest.raises(StoreError, match="to accept registered-models/create, got no"):
        register(registry_versions(records(ws), store="ledger"), registry.url)


def test_nothing_to_register_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="expected a release that was live"):
        registry_versions(records(make_workspace(tmp_path / "ws")), store="ledger")
