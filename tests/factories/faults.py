"""A server that misbehaves: alone, or as a proxy in front of a real S3 server."""

import http.client
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

import pytest

from safegene.workspace import s3_client

HTML = b"<html><body>Please sign in</body></html>"
HANGS = ("hang", "drip headers", "drip body", "drip status")
STARTS = {
    "drip status": b"HTTP/1.1 200 ",
    "drip headers": b"HTTP/1.1 200 OK\r\nX-Slow: ",
    "drip body": b'HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\nETag: "x"\r\n\r\n',
}
OWN = ("connection", "transfer-encoding", "date")  # headers that this server writes itself
DRIP = 0.05  # seconds between two bytes


class FaultyServer:
    """Answers every request by the fault that a test chose; a request without one goes to ``upstream``.

    ``hang``: no byte. ``drip status``, ``drip headers``, ``drip body``: a byte at a time, without end. ``html``: a page
    with status 200. ``lost``: the request arrives, its reply does not. ``cut``: half of the reply. ``ignores``: a reply
    of 412 becomes 200. ``redirect``: to itself. ``500``. ``models``: no fault, but the list of a model server.
    """

    def __init__(self, upstream: str | None = None) -> None:
        self.fault: Callable[[str, str], str] = lambda method, path: ""
        self.asked: list[tuple[str, str]] = []
        self.ended = threading.Event()
        outer, lock = self, threading.Lock()
        host = urlsplit(upstream).netloc if upstream else ""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                with lock:
                    outer.asked.append((self.command, self.path))
                fault = outer.fault(self.command, self.path)
                if fault in HANGS:
                    self.drip(fault)
                elif fault == "html":
                    self.reply(200, {"Content-Type": "text/html"}, HTML)
                elif fault == "models":
                    self.reply(200, {}, b'{"data": [{"id": "m"}]}')
                elif fault == "500":
                    self.reply(500, {}, b"")
                elif fault == "redirect":
                    self.reply(307, {"Location": self.path}, b"")
                else:
                    self.forward(body, fault)

            do_POST = do_PUT = do_DELETE = do_HEAD = do_GET  # noqa: N815 (http.server's names)

            def drip(self, fault: str) -> None:
                self.close_connection = True
                try:
                    self.wfile.write(STARTS.get(fault, b""))
                    while not outer.ended.wait(DRIP):
                        if fault != "hang":
                            self.wfile.write(b"a")
                except OSError:
                    pass

            def forward(self, body: bytes, fault: str) -> None:
                headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
                upstream = http.client.HTTPConnection(host, timeout=30)
                upstream.request(self.command, self.path, body, headers)
                got = upstream.getresponse()
                content = got.read()
                upstream.close()
                if fault == "lost":
                    self.close_connection = True
                    self.connection.close()
                    return
                status = 200 if fault == "ignores" and got.status == 412 else got.status
                kept = {name: value for name, value in got.getheaders() if name.lower() not in OWN}
                kept.setdefault("ETag", '"ignored"')
                self.reply(status, kept, content, cut=fault == "cut")

            def reply(self, status: int, headers: dict[str, str], content: bytes, *, cut: bool = False) -> None:
                self.send_response_only(status)
                length = headers.pop("Content-Length", headers.pop("content-length", str(len(content))))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content[: len(content) // 2] if cut else content)
                if cut:
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """boto3's retries follow at once, as many as ever; no silence of a server of an earlier test is remembered."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
    monkeypatch.setattr(s3_client, "_silent", {})


def always(fault: str) -> Callable[[str, str], str]:
    return lambda method, path: fault
