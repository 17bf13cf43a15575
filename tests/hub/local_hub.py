"""A Hub on this machine: as much of its HTTP interface as huggingface_hub, transformers and datasets ask for.

Contents lie in a folder by their SHA-256; a commit is a list of paths and SHA-256s, and its id their hash. Large files
go the way of Git LFS: Xet is not spoken, and HF_HUB_DISABLE_XET=1 keeps the clients from it.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE = (".safetensors", ".parquet", ".bin", ".png")
PAGE = 4  # entries of a listing: small, so that there are several pages
REPOSITORY = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/([\w-]+)(?:/([^/]+)(?:/(.+))?)?)?")
FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
BATCH = re.compile(r"/(?:datasets/)?[^/]+/[^/]+\.git/info/lfs/objects/batch")


@dataclass
class Commit:
    id: str
    title: str
    files: dict[str, str]  # path: SHA-256
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z"))


class LocalHub:
    """Start it, and give `url` to clients as HF_ENDPOINT.

    Attributes:
        gated: Ids whose files nobody may have.
        refused: Ids, and the status, code and message of every answer about them.
        dying: Ids, and the name of a file: half of it is sent, and then no request for that id is answered, until
            /revive is asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # of the contents
        self.commits: dict[tuple[str, str], list[Commit]] = {}
        self.gated: set[str] = set()
        self.refused: dict[str, tuple[int, str, str]] = {}
        self.dying: dict[str, str] = {}
        self.dead: set[str] = set()
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def store(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        (self.folder / digest).write_bytes(content)
        return digest

    def content(self, digest: str) -> bytes:
        return (self.folder / digest).read_bytes()

    def find(self, kind: str, name: str, revision: str = "main") -> Commit | None:
        history = self.commits[kind, name]
        return history[-1] if revision == "main" else next((c for c in history if c.id == revision), None)

    def files(self, name: str, kind: str = "models") -> dict[str, bytes]:
        """What the newest commit holds."""
        return {path: self.content(digest) for path, digest in self.find(kind, name).files.items()}

    def commit(self, name: str, files: dict[str, str | None], title: str = "changed", kind: str = "models") -> Commit:
        """A commit onto the newest one; None removes a file, or a folder whose name ends in a slash."""
        with self.lock:
            history = self.commits.setdefault((kind, name), [])
            merged = dict(history[-1].files) if history else {}
            for path, digest in files.items():
                if digest is not None:
                    merged[path] = digest
                    continue
                for old in [old for old in merged if old == path or (path.endswith("/") and old.startswith(path))]:
                    del merged[old]
            text = json.dumps([kind, name, len(history), title, merged])
            history.append(Commit(hashlib.sha1(text.encode()).hexdigest(), title, merged))
            return history[-1]


class Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and content in one packet

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.body = self.read_body()
        parts = urlsplit(self.path)
        self.where, self.query = parts.path, parse_qs(parts.query)
        if any(f"/{name}/" in f"{self.where}/" for name in self.hub.dead):
            self.close_connection = True
        else:
            self.route()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def route(self) -> None:
        if found := FILE.fullmatch(self.where):
            self.resolve("datasets" if found[1] else "models", found[2], *map(unquote, found.group(3, 4)))
        elif self.where == "/api/repos/create":
            self.create()
        elif self.where == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif BATCH.fullmatch(self.where):
            self.answer_batch()
        elif self.where == "/revive":  # no Hub's: the tests' own
            self.hub.dying, self.hub.dead = {}, set()
            self.answer({})
        elif self.where.startswith("/lfs/"):
            self.hub.store(self.body)
            self.answer({})
        elif found := REPOSITORY.fullmatch(self.where):
            self.repository(
                found[1], found[2], found[3] or "info", *(unquote(part or "") for part in found.group(4, 5))
            )
        else:
            self.refuse(404, "NotFound", f"nothing is at {self.where}")

    # ---- answers

    def answer(self, value: object, status: int = 200, **headers: str) -> None:
        self.send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **headers})

    def refuse(self, status: int, code: str, message: str, **headers: str) -> None:
        self.answer({"error": message}, status, **{"X-Error-Code": code, "X-Error-Message": message, **headers})

    def send(self, content: bytes, status: int, headers: dict[str, str], sent: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:sent])

    # ---- files

    def resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        commit = self.known(kind, name, revision)
        if commit is None:
            return
        if name in self.hub.gated:
            self.refuse(403, "GatedRepo", f"Access to {name} is restricted and you are not in the authorized list.")
            return
        digest = commit.files.get(path)
        if digest is None:
            self.refuse(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit.id})
            return
        content = self.hub.content(digest)
        headers = {"X-Repo-Commit": commit.id, "Accept-Ranges": "bytes", "ETag": f'"{object_id(path, content)}"'}
        if path.endswith(LARGE):
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        status = 206 if asked else 200
        if asked:
            first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content = content[first : last + 1]
        dies = self.command == "GET" and self.hub.dying.get(name) == Path(path).name
        if dies:
            self.hub.dead.add(name)
            self.close_connection = True
        self.send(content, status, headers, sent=len(content) // 2 if dies else None)

    def known(self, kind: str, name: str, revision: str) -> Commit | None:
        """A commit; None, after a refusal, where there is none."""
        if name in self.hub.refused:
            self.refuse(*self.hub.refused[name])
            return None
        if (kind, name) not in self.hub.commits:
            self.refuse(404, "RepoNotFound", "Repository not found")
            return None
        commit = self.hub.find(kind, name, revision)
        if commit is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # ---- repositories and uploads

    def create(self) -> None:
        asked = json.loads(self.body)
        kind, name = f"{asked.get('type') or 'model'}s", f"{asked.get('organization') or 'me'}/{asked['name']}"
        url = f"{self.hub.url}/{'datasets/' if kind == 'datasets' else ''}{name}"
        if (kind, name) in self.hub.commits:
            self.answer({"error": "You already created this repo", "url": url}, 409)
            return
        self.hub.commit(name, {".gitattributes": self.hub.store(b"")}, "initial commit", kind)
        self.answer({"url": url, "id": name, "name": name})

    def repository(self, kind: str, name: str, what: str, revision: str, path: str) -> None:
        commit = self.known(kind, name, revision or "main")
        if commit is None:
            return
        if what in ("info", "revision"):
            self.answer(self.info(kind, name, commit))
        elif what == "tree":
            self.tree(commit, path)
        elif what == "paths-info":
            paths = parse_qs(self.body.decode())["paths"]
            self.answer([entry for entry in self.entries(commit) if entry["path"] in paths])
        elif what == "preupload":
            paths = [file["path"] for file in json.loads(self.body)["files"]]
            modes = {path: "lfs" if path.endswith(LARGE) else "regular" for path in paths}
            files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
            self.answer({"files": files})
        elif what == "commit":
            self.take_commit(kind, name)
        else:
            self.refuse(404, "NotFound", f"nothing is at {self.where}")

    def info(self, kind: str, name: str, commit: Commit) -> dict:
        facts = {"id": name, "author": name.split("/")[0], "sha": commit.id, "lastModified": commit.date, "tags": []}
        facts |= {"private": False, "disabled": False, "downloads": 0, "likes": 0, "createdAt": commit.date}
        gated = "manual" if name in self.hub.gated else False
        return {**facts, "gated": gated, "siblings": [{"rfilename": path} for path in commit.files]}

    def entries(self, commit: Commit) -> list[dict]:
        """Every file and folder of a commit."""
        found: dict[str, dict] = {}
        last = {"id": commit.id, "title": commit.title, "date": commit.date}
        for path, digest in sorted(commit.files.items()):
            for parent in list(Path(path).parents)[:-1]:
                oid = hashlib.sha1(str(parent).encode()).hexdigest()
                found[str(parent)] = {"type": "directory", "path": str(parent), "size": 0, "oid": oid}
            content = self.hub.content(digest)
            found[path] = {"type": "file", "path": path, "size": len(content), "oid": object_id(path, content)}
            if path.endswith(LARGE):
                found[path]["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        return [{**entry, "lastCommit": last} for entry in found.values()]

    def tree(self, commit: Commit, folder: str) -> None:
        start = f"{folder}/" if folder else ""
        entries = [entry for entry in self.entries(commit) if entry["path"].startswith(start)]
        if folder and not entries:
            self.refuse(404, "EntryNotFound", f"{folder} does not exist")
            return
        if self.query.get("recursive", ["false"])[0].lower() != "true":
            entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(start)]
        first, headers = int(self.query.get("cursor", ["0"])[0]), {}
        if first + PAGE < len(entries):
            query = "".join(f"{key}={quote(value[0])}&" for key, value in self.query.items() if key != "cursor")
            headers["Link"] = f'<{self.hub.url}{self.where}?{query}cursor={first + PAGE}>; rel="next"'
        self.answer(entries[first : first + PAGE], **headers)

    def answer_batch(self) -> None:
        objects = json.loads(self.body)["objects"]
        for entry in objects:
            if not (self.hub.folder / entry["oid"]).is_file():
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}"}}
        self.answer({"transfer": "basic", "objects": objects})

    def take_commit(self, kind: str, name: str) -> None:
        title, files = "", {}
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                title = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = self.hub.store(base64.b64decode(value["content"]))
            elif item["key"] == "lfsFile":
                files[value["path"]] = value["oid"]
            else:
                files[value["path"] + "/" * (item["key"] == "deletedFolder")] = None
        commit = self.hub.commit(name, files, title, kind)
        url = f"{self.hub.url}/{'datasets/' if kind == 'datasets' else ''}{name}/commit/{commit.id}"
        self.answer({"success": True, "commitOid": commit.id, "commitUrl": url, "hookOutput": ""})


def object_id(path: str, content: bytes) -> str:
    """As git names it: of a large file, its pointer."""
    if path.endswith(LARGE):
        digest = hashlib.sha256(content).hexdigest()
        content = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n".encode()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
