"""A small HTTP server that serves a mirror folder under the Hub's URLs, for the true download path."""

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RESOLVE = re.compile(r"^(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")
TREE = re.compile(r"^/api/(?:datasets|models)/([^/]+/[^/]+)/tree/([^/]+)")
INFO = re.compile(r"^/api/(?:datasets|models)/([^/]+/[^/]+?)(?:/revision/([^/]+))?$")
PATHS = re.compile(r"^/api/(?:datasets|models)/([^/]+/[^/]+)/paths-info/([^/]+)$")


class Hub(BaseHTTPRequestHandler):
    """Files, file lists and information of the data sets and models below `mirror`; each has one commit."""

    mirror: Path
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        match = PATHS.match(urlsplit(self.path).path)
        assert match
        entries = {entry["path"]: entry for entry in self._entries(match[1])}
        self._json([entries[path] for path in asked["paths"] if path in entries])

    def _answer(self, *, body: bool) -> None:
        path = urlsplit(self.path).path
        if match := RESOLVE.match(path):
            self._file(self.mirror / match[1] / unquote(match[3]), body)
        elif (match := TREE.match(path)) and (self.mirror / match[1]).is_dir():
            self._json(self._entries(match[1]))
        elif match := INFO.match(path):
            self._info(match[1])
        else:
            self._missing("RepoNotFound")

    def _entries(self, name: str) -> list[dict[str, object]]:
        folder = self.mirror / name
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return [
            {
                "type": "file",
                "path": path.relative_to(folder).as_posix(),
                "size": path.stat().st_size,
                "oid": _oid(path),
            }
            for path in files
        ]

    def _info(self, name: str) -> None:
        if not (self.mirror / name).is_dir():
            self._missing("RepoNotFound")
            return
        files = [
            {"rfilename": entry["path"], "size": entry["size"], "blobId": entry["oid"]} for entry in self._entries(name)
        ]
        self._json({"id": name, "sha": COMMIT, "gated": False, "siblings": files, "cardData": {"license": "mit"}})

    def _file(self, path: Path, body: bool) -> None:
        if not path.is_file():
            self._missing("EntryNotFound")
            return
        content = path.read_bytes()
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = (int(wanted[1]), int(wanted[2] or len(content) - 1)) if wanted else (0, len(content) - 1)
        part = content[start : end + 1]
        self.send_response(206 if wanted else 200)
        self._headers(len(part), {"ETag": f'"{_oid(path)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"})
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
        self.end_headers()
        if body:
            self.wfile.write(part)

    def _json(self, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self._headers(len(data), {"Content-Type": "application/json"})
        self.end_headers()
        self.wfile.write(data)

    def _missing(self, code: str) -> None:
        self.send_response(404)
        self._headers(0, {"X-Error-Code": code, "X-Error-Message": code})
        self.end_headers()

    def _headers(self, length: int, more: dict[str, str]) -> None:
        for name, value in {"Content-Length": str(length), **more}.items():
            self.send_header(name, value)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def serve(mirror: Path) -> ThreadingHTTPServer:
    """A server of `mirror` on a free port; the caller runs and closes it."""
    handler = type("Handler", (Hub,), {"mirror": mirror})
    return ThreadingHTTPServer(("127.0.0.1", 0), handler)
