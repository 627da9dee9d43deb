"""A small Hub on this machine: takes repositories and commits over HTTP as huggingface_hub sends them."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_for_tests"


class LocalHub(ThreadingHTTPServer):
    """Keeps what was uploaded; every file comes with the commit itself."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, Any]] = {}  # id -> what was asked for
        self.files: dict[str, dict[str, bytes]] = {}  # id -> path -> content
        self.commits: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: LocalHub

    def do_GET(self) -> None:
        repo = "/".join(self.path.removeprefix("/api/models/").split("/")[:2])
        if f"/{repo}/tree/" in self.path:
            files = self.server.files.get(repo, {})
            self._answer([{"type": "file", "path": p, "size": len(c), "oid": "b" * 40} for p, c in files.items()])
        elif repo in self.server.repositories:
            self._answer({"sha": "0" * 40, "siblings": [], "id": repo})
        else:
            self._answer({"error": "not found"}, 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            self._answer({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]})
        elif "/commit/" in self.path:
            self._commit([json.loads(line) for line in body.splitlines()])
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        else:
            self._answer({"error": f"unknown: {self.path}"}, 404)

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        self.server.repositories[name] = wanted
        self._answer({"url": f"{self.server.address}/{name}", "name": name, "id": "1"})

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        repo = self.path.removeprefix("/api/models/").partition("/commit/")[0]
        files = self.server.files.setdefault(repo, {})
        for line in lines:
            if line["key"] == "header":
                self.server.commits.append(line["value"]["summary"])
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
            else:
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        oid = "a" * 40
        self._answer({"success": True, "commitOid": oid, "commitUrl": f"{self.server.address}/{repo}/commit/{oid}"})

    def _answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: pytest shows the answers that matter."""


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """A running LocalHub."""
    hub = LocalHub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
