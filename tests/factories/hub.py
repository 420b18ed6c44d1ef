"""A stand-in of the Hugging Face Hub's HTTP API, on loopback: as much of it as the real `huggingface_hub` asks for."""

import hashlib
import json
import re
import threading
from base64 import b64decode
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Upload:
    """Puts the files of a folder below a prefix of an S3 bucket."""

    client: Any
    bucket: str

    def __call__(self, folder: Path, prefix: str) -> None:
        for path in folder.iterdir():
            self.client.put_object(Bucket=self.bucket, Key=f"{prefix}/{path.name}", Body=path.read_bytes())


@dataclass
class HubStandIn:
    """Repositories by name, each a history of commits.

    Attributes:
        commits: repository (a data set's: ``datasets/ORG/NAME``) -> commit -> file name -> bytes.
        heads: (repository, revision) -> commit.
        served: (method, path, Range header) of every request.
        cut_after: break the connection once after so many bytes of a body; None never.
        damaged: name of a file of which other bytes are sent than were announced.
    """

    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    heads: dict[tuple[str, str], str] = field(default_factory=dict)
    served: list[tuple[str, str, str]] = field(default_factory=list)
    cut_after: int | None = None
    damaged: str = ""

    def __post_init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def publish(self, repo: str, files: dict[str, bytes], *, revision: str = "main") -> str:
        """Commit files as the revision's newest state; the commit."""
        state = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
        commit = hashlib.sha1(json.dumps(state).encode()).hexdigest()
        self.commits.setdefault(repo, {})[commit] = files
        self.heads[repo, revision] = self.heads[repo, commit] = commit
        return commit

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._file(body=False)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/api/models":
            author = parse_qs(urlsplit(self.path).query)["author"][0]
            repos = sorted(repo for repo in self.hub.commits if repo.startswith(f"{author}/"))
            self._json([self._info(repo, self.hub.heads[repo, "main"]) for repo in repos])
        elif found := re.fullmatch(r"/api/(models/|datasets/)([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            repo, revision = found[1].removeprefix("models/") + found[2], found[3] or "main"
            self._note()
            if (repo, revision) in self.hub.heads:
                self._json(self._info(repo, self.hub.heads[repo, revision]))
            else:
                self._missing("RevisionNotFound" if repo in self.hub.commits else "RepoNotFound")
        else:
            self._file(body=True)

    def do_POST(self) -> None:
        """Commits of `HfApi.create_commit`; every file is sent in the commit itself, none through LFS."""
        body, path = self.rfile.read(int(self.headers["Content-Length"])), urlsplit(self.path).path
        self._note()
        if path == "/api/repos/create":
            self._json({"url": f"{self.hub.endpoint}/{json.loads(body)['organization']}/{json.loads(body)['name']}"})
        elif path == "/api/validate-yaml":
            self._json({})
        elif path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for name in names]
            self._json({"files": modes})
        else:
            repo = path.removeprefix("/api/models/").removesuffix("/commit/main")
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            commit = self.hub.publish(repo, {file["path"]: b64decode(file["content"]) for file in files})
            self._json({"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{commit}", "commitOid": commit})

    def _info(self, repo: str, commit: str) -> dict[str, Any]:
        files = self.hub.commits[repo][commit]
        siblings = [{"rfilename": name, "size": len(data), **_lfs(name, data)} for name, data in sorted(files.items())]
        return {
            "_id": "0",
            "id": repo,
            "modelId": repo,
            "sha": commit,
            "tags": [],
            "downloads": 0,
            "siblings": siblings,
        }

    def _file(self, *, body: bool) -> None:
        self._note()
        found = re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", urlsplit(self.path).path)
        commit = self.hub.heads.get((found[1], found[2])) if found else None
        data = self.hub.commits[found[1]][commit].get(found[3]) if found and commit else None
        if data is None or commit is None:
            return self._missing("EntryNotFound")
        etag = hashlib.sha256(data).hexdigest()
        whole, start = data, 0
        if ranged := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(ranged[1])
            data = data[start:]
        self.send_response(206 if ranged else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(data)))
        if ranged:
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        self.end_headers()
        if body:
            self._send(data, damaged=found[3] == self.hub.damaged if found else False)

    def _send(self, data: bytes, *, damaged: bool) -> None:
        cut = self.hub.cut_after
        if cut is not None and cut < len(data):
            self.hub.cut_after = None
            self.wfile.write(data[:cut])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(data[:-1] + bytes([data[-1] ^ 1]) if damaged else data)

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", "not found")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _note(self) -> None:
        self.hub.served.append((self.command, urlsplit(self.path).path, self.headers.get("Range", "")))

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _lfs(name: str, data: bytes) -> dict[str, Any]:
    if not name.endswith((".safetensors", ".bin")):
        return {"blobId": hashlib.sha1(data).hexdigest()}
    return {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}}
