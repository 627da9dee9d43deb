"""A small Hub on this machine: serves data sets and models under the Hub's URLs, and takes repositories and commits."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"  # of everything that is served
TOKEN = "hf_for_tests"  # required for uploads
RESOLVE = re.compile(r"^(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")
API = re.compile(r"^/api/(?:datasets|models)/([^/]+/[^/]+?)(?:/(tree|revision|paths-info|preupload|commit)/.+)?$")


class LocalHub(ThreadingHTTPServer):
    """Its repositories are the folders `<mirror>/<owner>/<name>`, and those that were uploaded, kept in memory."""

    def __init__(self, mirror: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.mirror = mirror
        self.repositories: dict[str, dict[str, Any]] = {}  # id -> what was asked for when it was created
        self.files: dict[str, dict[str, bytes]] = {}  # id -> path -> what was uploaded
        self.commits: list[str] = []
        self.gated = set[str]()  # ids of those whose files are refused

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def contents(self, repo: str) -> dict[str, bytes] | None:
        """The files of a repository by path; None where there is no such repository."""
        folder = self.mirror / repo if self.mirror else None
        if folder and folder.is_dir():
            paths = sorted(path for path in folder.rglob("*") if path.is_file())
            return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        return self.files.get(repo, {}) if repo in self.repositories else self.files.get(repo)


class _Handler(BaseHTTPRequestHandler):
    server: LocalHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._read(body=False)

    def do_GET(self) -> None:
        self._read(body=True)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        repo, asked = match.groups() if (match := API.match(path)) else (None, None)
        if asked == "paths-info":
            entries = self._entries(repo)
            self._json([entries[wanted] for wanted in json.loads(body)["paths"] if wanted in entries])
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json({"error": "Invalid credentials"}, 401)
        elif path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            self.server.repositories[name] = wanted
            self._json({"url": f"{self.server.address}/{name}", "name": name, "id": "1"})
        elif asked == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            self._json({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in files]})
        elif asked == "commit":
            self._commit(repo, [json.loads(line) for line in body.splitlines()])
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        else:
            self._json({"error": f"unknown: {path}"}, 404)

    def _read(self, *, body: bool) -> None:
        path = urlsplit(self.path).path
        if match := RESOLVE.match(path):
            if match[1] in self.server.gated:
                return self._refuse(403, "GatedRepo")
            content = (self.server.contents(match[1]) or {}).get(unquote(match[3]))
            return self._refuse(404, "EntryNotFound") if content is None else self._file(content, body)
        match = API.match(path)
        if match is None or self.server.contents(match[1]) is None:
            return self._refuse(404, "RepoNotFound")
        entries = list(self._entries(match[1]).values())
        if match[2] == "tree":
            return self._json(entries)
        files = [{"rfilename": item["path"], "size": item["size"], "blobId": item["oid"]} for item in entries]
        info = {"id": match[1], "sha": COMMIT, "gated": False, "siblings": files, "cardData": {"license": "mit"}}
        return self._json(info)

    def _entries(self, repo: str | None) -> dict[str, dict[str, Any]]:
        contents = self.server.contents(str(repo)) or {}
        return {
            path: {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in contents.items()
        }

    def _commit(self, repo: str | None, lines: list[dict[str, Any]]) -> None:
        files = self.server.files.setdefault(str(repo), {})
        for line in lines:
            if line["key"] == "header":
                self.server.commits.append(line["value"]["summary"])
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
            else:
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        address = f"{self.server.address}/{repo}/commit/{COMMIT}"
        self._json({"success": True, "commitOid": COMMIT, "commitUrl": address})

    def _file(self, content: bytes, body: bool) -> None:
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = (int(wanted[1]), int(wanted[2] or len(content) - 1)) if wanted else (0, len(content) - 1)
        part = content[start : end + 1]
        self.send_response(206 if wanted else 200)
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        self._headers(len(part), {"ETag": etag, "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"})
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
        self.end_headers()
        if body:
            self.wfile.write(part)

    def _json(self, content: object, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self._headers(len(data), {"Content-Type": "application/json"})
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self._headers(0, {"X-Error-Code": code, "X-Error-Message": code})
        self.end_headers()

    def _headers(self, length: int, more: dict[str, str]) -> None:
        for name, value in {"Content-Length": str(length), **more}.items():
            self.send_header(name, value)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: pytest shows the answers that matter."""


@contextmanager
def local_hub(mirror: Path | None = None) -> Iterator[LocalHub]:
    """A running Hub."""
    hub = LocalHub(mirror)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def in_place_of_the_hub(hub: LocalHub, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """Let the Hub's client in this process talk to `hub`, and keep what it downloads in `cache`."""
    patch.setattr(constants, "ENDPOINT", hub.address)
    template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
