"""A Hugging Face hub on 127.0.0.1, as much of it as downloads and uploads ask for.

Model info, tree listing, and files, those of data sets too, with ETag, commit and Range; it can
break a download off, refuse one, and count what it served. Uploads are those of Git LFS: a batch of
objects, a PUT for each, and a commit that names them.
"""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit


@dataclass
class Repo:
    """Files by commit, commits by branch or tag."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def resolve(self, revision: str) -> str | None:
        commit = self.names.get(revision, revision)
        return commit if commit in self.commits else None


class HubServer(ThreadingHTTPServer):
    """`with HubServer() as hub:` serves until the block ends, at `hub.url`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repos: dict[str, Repo] = {}
        self.served: Counter[str] = Counter()  # bytes of each file sent
        self.ranges: list[str] = []  # every Range header seen
        self.break_after: dict[str, int] = {}  # once, drop the connection after so many bytes
        self.status: int | None = None  # answer everything with this status
        self.file_status: dict[str, int] = {}  # answer GETs of this file with this status
        self.info: dict[str, str] = {}  # extra headers of an answer with `status`
        self.objects: dict[str, bytes] = {}  # LFS objects that were uploaded, by sha256
        self.token: str | None = None  # what writing needs
        self.read_only: set[str] = set()  # repos that refuse to be written
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def add(
        self, name: str, folder: Path, *, revision: str = "main", commit: str | None = None
    ) -> str:
        """Serve the files under `folder` as `revision` of the repo; returns the commit.

        A data set's name starts with "datasets/". `commit` is made up where none is given.
        """
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
        text = repr([(path, hashlib.sha1(data).hexdigest()) for path, data in files.items()])
        commit = commit or hashlib.sha1(text.encode()).hexdigest()
        repo = self.repos.setdefault(name, Repo())
        repo.commits[commit] = files
        repo.names[revision] = commit
        return commit

    def commit(self, name: str, operations: list[dict[str, Any]]) -> str:
        """Apply the operations of a commit on top of main."""
        repo = self.repos[name]
        before = repo.resolve("main")
        files = dict(repo.commits[before]) if before else {}
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
        commit = hashlib.sha1(repr(sorted(files)).encode()).hexdigest()
        repo.commits[commit], repo.names["main"] = files, commit
        return commit


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> HubServer:
        return cast(HubServer, self.server)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.hub.status is not None:
            return self.refuse(self.hub.status, self.hub.info)
        path = unquote(urlsplit(self.path).path)
        if path == "/api/whoami-v2":
            return self.send_json({"name": "user"}) if self.may_write() else None
        if api := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path):
            return self.answer_api(api[1], api[2] or "revision", api[3] or "main")
        if file := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.answer_file(file[1], file[2], file[3])
        return self.refuse(404)

    def do_PUT(self) -> None:
        body = self.read_body()
        self.hub.objects[self.path.rpartition("/")[2]] = body
        self.send_json({})

    def do_POST(self) -> None:
        body = self.read_body()
        path = unquote(urlsplit(self.path).path)
        if path == "/api/validate-yaml":
            return self.send_json({"errors": [], "warnings": []})
        if not self.may_write():
            return
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.hub.repos.setdefault(name, Repo())
            return self.send_json({"url": f"{self.hub.url}/{name}"})
        if name := re.fullmatch(r"/([^/]+/[^/]+).git/info/lfs/objects/batch", path):
            return self.send_json({"objects": [self.place(o) for o in json.loads(body)["objects"]]})
        if asked := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path):
            return self.answer_upload(asked[1], asked[2], body)
        return self.refuse(404)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def place(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Where to send an object; nowhere if it is there."""
        if asked["oid"] in self.hub.objects:
            return asked
        return asked | {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"}}}

    def answer_upload(self, name: str, kind: str, body: bytes) -> None:
        if name in self.hub.read_only:
            return self.refuse(403)
        if kind == "preupload":
            files = [self.mode(file["path"]) for file in json.loads(body)["files"]]
            return self.send_json({"files": files})
        commit = self.hub.commit(name, [json.loads(line) for line in body.splitlines()])
        url = f"{self.hub.url}/{name}/commit/{commit}"
        return self.send_json({"commitUrl": url, "commitOid": commit})

    @staticmethod
    def mode(path: str) -> dict[str, Any]:
        large = path.endswith(".safetensors")
        return {
            "path": path,
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False,
        }

    def may_write(self) -> bool:
        if self.hub.token and self.headers.get("Authorization") == f"Bearer {self.hub.token}":
            return True
        self.refuse(401)
        return False

    def answer_api(self, name: str, kind: str, revision: str) -> None:
        repo, commit = self.find(name, revision)
        if repo is None or commit is None:
            return
        files = repo.commits[commit]
        if kind == "tree":
            return self.send_json([self.tree_entry(path, files[path]) for path in files])
        siblings = [{"rfilename": path} for path in files]
        return self.send_json({"id": name, "modelId": name, "sha": commit, "siblings": siblings})

    @staticmethod
    def tree_entry(path: str, data: bytes) -> dict[str, object]:
        oid = hashlib.sha1(data).hexdigest()
        return {"type": "file", "path": path, "size": len(data), "oid": oid}

    def answer_file(self, name: str, revision: str, path: str) -> None:
        repo, commit = self.find(name, revision)
        if repo is None or commit is None:
            return
        if repo.gated:
            return self.refuse(401, {"X-Error-Code": "GatedRepo"})
        if path not in repo.commits[commit]:
            return self.refuse(404, {"X-Error-Code": "EntryNotFound"})
        if self.command == "GET" and path in self.hub.file_status:
            return self.refuse(self.hub.file_status[path])
        return self.send_file(path, repo.commits[commit][path], commit)

    def find(self, name: str, revision: str) -> tuple[Repo | None, str | None]:
        repo = self.hub.repos.get(name)
        commit = repo.resolve(revision) if repo else None
        if repo is None:
            # As the hub does for anyone not logged in: it might be private.
            self.refuse(401, {"X-Error-Code": "RepoNotFound"})
        elif commit is None:
            self.refuse(404, {"X-Error-Code": "RevisionNotFound"})
        return repo, commit

    def refuse(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": "0", **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()

    def send_json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_file(self, path: str, data: bytes, commit: str) -> None:
        start = self.range_start()
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            self.send_body(path, data[start:])

    def range_start(self) -> int:
        header = self.headers.get("Range")
        if header is None:
            return 0
        self.hub.ranges.append(header)
        return int(header.removeprefix("bytes=").partition("-")[0])

    def send_body(self, path: str, body: bytes) -> None:
        limit = self.hub.break_after.pop(path, None)
        sent = body if limit is None else body[:limit]
        self.wfile.write(sent)
        self.hub.served[path] += len(sent)
        self.close_connection = self.close_connection or limit is not None
