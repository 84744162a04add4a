"""A small local stand-in for the Hugging Face Hub, so that tests can run the real client code offline.

    python local_hub.py --root DIR [--port 0] [--lfs]    prints its endpoint and serves until interrupted
    with LocalHub(root) as endpoint: ...                 the same in a thread of this process

It answers what `huggingface_hub` asks to create repos, upload, list and download. It listens on 127.0.0.1
only and keeps everything under ROOT: contents in `blobs/`, named by their sha256, and `log.jsonl`, one
event a line (a repo created, a commit, a ref set), replayed at start. One server at a time may use a ROOT.
Standard library only; where PyYAML is installed (the client needs it anyway) model cards are checked and
their metadata is part of a repo's info.

Uploads come in two ways. By default every file, whatever its size, is asked for inside the commit request:
that works with the client as it is installed, hf_xet and all, except `Dataset.push_to_hub`. With `lfs=True`
big and binary files come through Git LFS: all uploads work then, but the client must have
HF_HUB_DISABLE_XET=1 (see `LocalHub.env`), for otherwise it goes on in the Xet protocol, not spoken here.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import json
import os
import re
import secrets
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit


try:
    import yaml
except ImportError:
    yaml = None  # type: ignore[assignment]

JSON = dict[str, Any]
CHUNK = 1 << 20
LFS_SIZE = 10 << 20
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".npz", ".npy", ".parquet", ".arrow", ".onnx", ".gz", ".zip")
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
TOKENS: Mapping[str, str] = {"hf_local_write": "write", "hf_local_read": "read"}


class HubError(Exception):
    """An answer that is no success. From `code` the client tells which exception to raise."""

    def __init__(self, status: int, message: str, code: str = "", commit: str = "", **body: Any) -> None:
        super().__init__(message)
        self.status, self.body = status, {"error": message, **body}
        headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}
        self.headers = {key: value for key, value in headers.items() if value}


class File(NamedTuple):
    oid: str  # git's name for it: of the contents, or of the pointer that stands for an LFS file
    size: int
    sha256: str  # the name of the contents in blobs/
    lfs: bool
    commit: str = ""  # the commit that last changed this path


class Commit(NamedTuple):
    sha: str
    parent: str | None
    title: str
    message: str
    date: str
    files: dict[str, File]


@dataclass
class Repo:
    kind: str  # models, datasets or spaces
    id: str
    private: bool
    date: str
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # refs/heads/main -> sha

    @property
    def page(self) -> str:
        return f"/{self.id}" if self.kind == "models" else f"/{self.kind}/{self.id}"

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, a tag, a full ref or a (shortened) sha names."""
        for ref in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if ref in self.refs:
                return self.commits[self.refs[ref]]
        found = [sha for sha in list(self.commits) if sha.startswith(revision)]
        if len(revision) < 7 or len(found) != 1:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[found[0]]


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def checked_path(path: Any) -> str:
    """A file's path in a repo, refused unless it is plain, relative and stays inside."""
    if not isinstance(path, str) or re.search(r"[\\\x00-\x1f\x7f]", path):
        raise HubError(400, f"Invalid path in repo: {path!r}")
    if any(part in ("", ".", "..", ".git") for part in path.split("/")):
        raise HubError(400, f"Invalid path in repo: {path!r}")
    return path


def card_data(text: bytes) -> JSON:
    """The metadata block on top of a README.md; ValueError if it is not a YAML mapping."""
    block = re.match(rb"\s*---[ \t]*\r?\n(.*?)\r?\n?---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if not block or yaml is None:
        return {}
    try:
        data = yaml.safe_load(block[1]) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"Invalid YAML in metadata: {error}") from error
    if not isinstance(data, dict):
        raise ValueError("The metadata should be a mapping")
    clean: JSON = json.loads(json.dumps(data, default=str))  # a date, say, comes out as text
    return clean


class Store:
    """The repos: in memory to look things up, on disk to keep them. Every change is one event of the log."""

    def __init__(self, root: Path) -> None:
        self.blobs, self.log = root / "blobs", root / "log.jsonl"
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lock = threading.RLock()
        self.blobs.mkdir(parents=True, exist_ok=True)
        lines = self.log.read_bytes().splitlines(keepends=True) if self.log.exists() else []
        if lines and not lines[-1].endswith(b"\n"):  # cut off while it was written: it never counted
            self.log.write_bytes(b"".join(lines := lines[:-1]))
        for line in lines:
            self.apply(json.loads(line))

    def record(self, **event: Any) -> None:
        with self.lock, self.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(event) + "\n")
            self.apply(event)

    def apply(self, event: JSON) -> None:
        key, do = (event["kind"], event["id"]), event["do"]
        if do == "create":
            self.repos[key] = Repo(*key, event["private"], event["date"])
        elif do == "delete":
            del self.repos[key]
        elif do == "commit":
            files = {path: File(*file) for path, file in event["files"].items()}
            fields = {name: event[name] for name in Commit._fields if name != "files"}
            self.repos[key].commits[event["sha"]] = Commit(**fields, files=files)
        if do in ("commit", "ref"):
            self.repos[key].refs[event["ref"]] = event["sha"]
        elif do == "unref":
            del self.repos[key].refs[event["ref"]]

    def commit(self, repo: Repo, ref: str, parent: Commit | None, title: str, message: str,
               changes: Mapping[str, File | None]) -> Commit:  # fmt: skip
        """Put a commit on top of `parent` that sets the given paths or, where they are None, removes them."""
        sha = secrets.token_hex(20)  # as good a name as a hash: the log keeps it
        files: dict[str, File | None] = {**(parent.files if parent else {}), **changes}
        kept = {p: f._replace(commit=sha) if p in changes else f for p, f in sorted(files.items()) if f}
        made = Commit(sha, parent.sha if parent else None, title, message, now(), kept)
        self.record(do="commit", kind=repo.kind, id=repo.id, ref=ref, **made._asdict())
        return made

    def blob(self, sha256: str) -> Path:
        return self.blobs / sha256[:2] / sha256

    def put(self, chunks: Iterable[bytes], want: str | None = None) -> str:
        """Keep contents under their sha256, which must be `want` if that is given; returns it."""
        digest = hashlib.sha256()
        with tempfile.NamedTemporaryFile(dir=self.blobs, delete=False) as file:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
        sha256 = digest.hexdigest()
        if want not in (None, sha256):
            os.unlink(file.name)
            raise HubError(400, f"The contents' sha256 is {sha256}, not {want}")
        self.blob(sha256).parent.mkdir(exist_ok=True)
        os.replace(file.name, self.blob(sha256))
        return sha256

    def regular_file(self, data: bytes) -> File:
        return File(git_oid(data), len(data), self.put([data]), False)

    def lfs_file(self, sha256: Any) -> File:
        if not re.fullmatch("[0-9a-f]{64}", str(sha256)) or not self.blob(sha256).exists():
            raise HubError(400, f"LFS object {sha256!r} was not uploaded")
        size = self.blob(sha256).stat().st_size
        return File(git_oid(pointer(sha256, size)), size, sha256, True)


class Handler(BaseHTTPRequestHandler):
    """One connection. Below `plumbing`, a method a route: it returns what to answer in JSON, or raises HubError."""

    hub: LocalHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    # -- plumbing ---------------------------------------------------------------------------------

    def serve(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.store = self.hub.store
        self.endpoint = f"http://{self.headers.get('Host', self.hub.endpoint[7:])}"  # as the client calls it
        try:
            answer = self.answer(url.path)
            if answer is not None:
                self.reply(200, answer, {})
        except HubError as error:
            self.reply(error.status, error.body, error.headers)
        except ConnectionError:
            self.close_connection = True
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            traceback.print_exc()
            self.reply(400, {"error": f"Malformed request: {error!r}"}, {})  # not 500, which is tried again

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def answer(self, path: str) -> Any:
        method = "GET" if self.command == "HEAD" else self.command
        if method != "PUT":  # only LFS objects are PUT, and those are read as they come
            self.body = b"".join(self.body_chunks())
        for wanted, pattern, action in ROUTES:
            if wanted == method and (match := re.fullmatch(pattern, path)):
                return action(self, **{key: value and unquote(value) for key, value in match.groupdict().items()})
        deque(self.body_chunks() if method == "PUT" else (), maxlen=0)
        raise HubError(404, f"local_hub has no route for {self.command} {path}")

    def body_chunks(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while size := int(self.rfile.readline(100).split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline(100)
            while self.rfile.readline(65536).strip():
                pass
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left > 0:
            chunk = self.rfile.read(min(left, CHUNK))
            if not chunk:
                raise ConnectionError("the request's body ended early")
            left -= len(chunk)
            yield chunk

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, re.sub("[^ -~]", "?", value))
        self.end_headers()

    def reply(self, status: int, answer: Any, headers: Mapping[str, str]) -> None:
        data = json.dumps(answer).encode()
        self.head(status, {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers})
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        self.hub.requests.append((self.command, self.path, int(code)))

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def flag(self, name: str, query: Mapping[str, list[str]] | None = None) -> bool:
        return ((query or self.query).get(name) or [""])[0].lower() in ("1", "true")

    def role(self, need: str = "") -> str | None:
        """The role of the request's token, None without one; refused if that is not what it takes."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        role = self.hub.tokens.get(token)
        if token and role is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        if need and role is None:
            raise HubError(401, "Invalid username or password.")
        if need == "write" != role:
            raise HubError(403, "You don't have the rights: it takes a token with write access")
        return role

    def repo(self, kind: str | None, id: str, need: str = "") -> Repo:
        role, repo = self.role(need), self.store.repos.get((kind or "models", id))
        if repo is None or (repo.private and role is None):  # that a private repo exists is not even admitted
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repo

    # -- users and repos --------------------------------------------------------------------------

    def whoami(self) -> JSON:
        token = {"type": "access_token", "accessToken": {"displayName": "local", "role": self.role("read")}}
        user = self.hub.user
        return {"type": "user", "id": user, "name": user, "fullname": user, "orgs": [], "auth": token}

    def validate_yaml(self) -> JSON:
        try:
            card_data(json.loads(self.body)["content"].encode())
        except ValueError as error:
            raise HubError(400, str(error)) from error
        return {"errors": [], "warnings": []}

    def named(self) -> tuple[str, str, JSON]:
        """The kind and id of the repo that the request's body names, and the body."""
        body = json.loads(self.body)
        kind, id = f"{body.get('type') or 'model'}s", f"{body.get('organization') or self.hub.user}/{body['name']}"
        if kind not in ("models", "datasets", "spaces") or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", id):
            raise HubError(400, f"Invalid repo: {kind} {id}")
        return kind, id, body

    def create_repo(self) -> JSON:
        self.role("write")
        kind, id, body = self.named()
        private = bool(body.get("private")) or body.get("visibility") == "private"
        repo = Repo(kind, id, private, now())
        answer: JSON = {"url": self.endpoint + repo.page, "name": id, "id": id, "private": private}
        with self.store.lock:
            if (kind, id) in self.store.repos:
                raise HubError(409, "You already created this repo", **answer)
            self.store.record(do="create", kind=kind, id=id, private=private, date=now())
            first = {".gitattributes": self.store.regular_file(GITATTRIBUTES)}
            self.store.commit(repo, "refs/heads/main", None, "initial commit", "", first)
        return answer

    def delete_repo(self) -> JSON:
        kind, id, _ = self.named()
        with self.store.lock:
            self.repo(kind, id, "write")
            self.store.record(do="delete", kind=kind, id=id)
        return {}

    def info(self, kind: str, repo: str, revision: str | None) -> JSON:
        found = self.repo(kind, repo)
        commit, card = found.resolve(revision or "main"), {}
        if "README.md" in commit.files:
            with contextlib.suppress(ValueError):  # the real Hub would have refused such a card
                card = card_data(self.store.blob(commit.files["README.md"].sha256).read_bytes())
        siblings: list[JSON] = [{"rfilename": path} for path in commit.files]
        if "blobs" in self.query:
            siblings = [{"rfilename": e["path"], "blobId": e["oid"], **e} for e in self.entries(found, commit)]
        return {
            "id": repo, "modelId": repo, "author": repo.split("/")[0], "sha": commit.sha, "siblings": siblings,
            "private": found.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0,
            "createdAt": found.date, "lastModified": commit.date, "cardData": card, "tags": card.get("tags") or [],
            "pipeline_tag": card.get("pipeline_tag"), "library_name": card.get("library_name"),
        }  # fmt: skip

    # -- listings ---------------------------------------------------------------------------------

    def entries(self, repo: Repo, commit: Commit, expand: bool = False) -> list[JSON]:
        """All files of a commit as the client's RepoFile takes them."""
        entries = []
        for path, file in commit.files.items():
            entries.append({"type": "file", "path": path, "oid": file.oid, "size": file.size})
            if file.lfs:
                lfs = {"oid": file.sha256, "sha256": file.sha256, "size": file.size}
                entries[-1]["lfs"] = lfs | {"pointerSize": len(pointer(file.sha256, file.size))}
            if expand:
                last = repo.commits[file.commit]
                entries[-1]["lastCommit"] = {"id": last.sha, "title": last.title, "date": last.date}
        return entries

    def folders(self, commit: Commit) -> list[JSON]:
        names = {path[: match.start()] for path in commit.files for match in re.finditer("/", path)}
        oid = {name: git_oid(f"{commit.sha} {name}".encode()) for name in sorted(names)}
        return [{"type": "directory", "path": name, "oid": oid[name], "size": 0} for name in oid]

    def tree(self, kind: str, repo: str, revision: str, path: str | None) -> list[JSON]:
        found = self.repo(kind, repo)
        commit, prefix = found.resolve(revision), f"{path}/" if path else ""
        every = self.folders(commit) + self.entries(found, commit, self.flag("expand"))
        under = [entry for entry in every if entry["path"].startswith(prefix)]
        if path and not under:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound", commit.sha)
        return [e for e in under if self.flag("recursive") or "/" not in e["path"][len(prefix) :]]

    def paths_info(self, kind: str, repo: str, revision: str) -> list[JSON]:
        found, form = self.repo(kind, repo), parse_qs(self.body.decode())
        commit = found.resolve(revision)
        every = self.folders(commit) + self.entries(found, commit, self.flag("expand", form))
        return [entry for entry in every if entry["path"] in form.get("paths", [])]

    def refs(self, kind: str, repo: str) -> JSON:
        groups: JSON = {"branches": [], "tags": [], "pullRequests": [], "converts": []}
        for ref, sha in list(self.repo(kind, repo).refs.items()):
            _, group, name = ref.split("/", 2)
            group = {"heads": "branches", "tags": "tags", "pr": "pullRequests"}[group]
            groups[group].append({"name": name, "ref": ref, "targetCommit": sha})
        return groups

    def commits(self, kind: str, repo: str, revision: str) -> list[JSON]:
        found, log = self.repo(kind, repo), []
        commit: Commit | None = found.resolve(revision)
        while commit:
            log.append({"id": commit.sha, "authors": [{"user": self.hub.user}], **commit._asdict(), "files": None})
            commit = found.commits[commit.parent] if commit.parent else None
        return log

    # -- branches and tags ------------------------------------------------------------------------

    def set_ref(self, kind: str, id: str, ref: str, revision: str) -> JSON:
        with self.store.lock:
            repo = self.repo(kind, id, "write")
            if ref in repo.refs:
                raise HubError(409, f"Reference already exists: {ref}")
            sha = repo.resolve(revision).sha
            self.store.record(do="ref", kind=kind, id=id, ref="refs/" + checked_path(ref[5:]), sha=sha)
        return {}

    def branch(self, kind: str, repo: str, name: str) -> JSON:
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        return self.set_ref(kind, repo, f"refs/heads/{name}", start)

    def tag(self, kind: str, repo: str, name: str) -> JSON:
        return self.set_ref(kind, repo, f"refs/tags/{json.loads(self.body)['tag']}", name)

    def delete_ref(self, kind: str, repo: str, group: str, name: str) -> JSON:
        ref = f"refs/{'heads' if group == 'branch' else 'tags'}/{name}"
        with self.store.lock:
            if ref == "refs/heads/main" or ref not in self.repo(kind, repo, "write").refs:
                raise HubError(404, f"Invalid rev id: {ref}", "RevisionNotFound")
            self.store.record(do="unref", kind=kind, id=repo, ref=ref)
        return {}

    # -- uploads: preupload, then for LFS files batch, PUT and verify, then commit ------------------

    def preupload(self, kind: str, repo: str, revision: str) -> JSON:
        """How each file should come, and what is there now: the client leaves out what has not changed."""
        commit, files = self.repo(kind, repo, "write").resolve(revision), []
        for item in json.loads(self.body)["files"]:
            path, here = checked_path(item["path"]), commit.files.get(item["path"])
            lfs = self.hub.lfs and (path.endswith(LFS_SUFFIXES) or item["size"] >= LFS_SIZE)
            oid = here and (here.sha256 if here.lfs else here.oid)
            mode = "lfs" if lfs else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": files}

    def xet_token(self, kind: str, repo: str, revision: str) -> None:
        message = "local_hub does not speak Xet: set HF_HUB_DISABLE_XET=1 in the client, or start it without lfs"
        print(message, file=sys.stderr)  # for hf_xet does not show it
        raise HubError(501, message)

    def lfs_batch(self, kind: str | None, repo: str) -> JSON:
        page, objects, body = self.endpoint + self.repo(kind, repo, "write").page, [], json.loads(self.body)
        for item in body["objects"]:
            if body["operation"] != "upload" or not re.fullmatch("[0-9a-f]{64}", item["oid"]):
                raise HubError(422, "Only uploads by sha256 go through LFS")
            objects.append({"oid": item["oid"], "size": item["size"]})
            if not self.store.blob(item["oid"]).exists():
                # The PUT carries no token: as in a signed address, the ticket in it gives the right to it.
                ticket = secrets.token_urlsafe(16)
                self.hub.tickets[ticket] = item["oid"]
                verify = {"href": f"{page}.git/info/lfs/objects/verify"}
                objects[-1]["actions"] = {"upload": {"href": f"{self.endpoint}/_lfs/{ticket}"}, "verify": verify}
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, ticket: str) -> JSON:
        oid = self.hub.tickets.get(ticket)
        if oid is None:
            deque(self.body_chunks(), maxlen=0)  # or the connection's next request would start in it
            raise HubError(403, "Unknown upload ticket")
        self.store.put(self.body_chunks(), want=oid)
        return {}

    def lfs_verify(self, kind: str | None, repo: str) -> JSON:
        self.repo(kind, repo, "write")
        body = json.loads(self.body)
        if self.store.lfs_file(body["oid"]).size != body["size"]:
            raise HubError(422, "The object has another size")
        return {}

    def commit(self, kind: str, repo: str, revision: str) -> JSON:
        with self.store.lock:
            found = self.repo(kind, repo, "write")
            parent = found.resolve(revision)
            ref = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
            header: JSON = {}
            changes: dict[str, File | None] = {}
            for line in self.body.splitlines():
                operation = json.loads(line)
                key, value = operation["key"], operation["value"]
                path = "" if key == "header" else checked_path(value["path"].rstrip("/"))
                if key == "header":
                    header = value
                elif key == "file" and value["encoding"] == "base64":
                    changes[path] = self.store.regular_file(base64.b64decode(value["content"], validate=True))
                elif key == "lfsFile":
                    changes[path] = self.store.lfs_file(value["oid"])
                elif key in ("deletedFile", "deletedFolder"):
                    gone = [p for p in parent.files if (p + "/").startswith(path + "/")]
                    if not gone or (key == "deletedFile" and gone != [path]):
                        raise HubError(
                            404, f"A file with this name doesn't exist: {path}", "EntryNotFound", parent.sha
                        )
                    changes |= dict.fromkeys(gone)
                else:
                    raise HubError(400, f"Unknown operation: {key}")
            expected = header.get("parentCommit") or parent.sha
            if self.flag("create_pr"):
                parent = found.resolve(expected)
                ref = f"refs/pr/{1 + sum(ref.startswith('refs/pr/') for ref in found.refs)}"
            elif ref not in found.refs or not ref.startswith(("refs/heads/", "refs/pr/")):
                raise HubError(400, f"Not a branch: {revision}")
            elif not parent.sha.startswith(expected):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            made = self.store.commit(found, ref, parent, header["summary"], header.get("description") or "", changes)
        page = self.endpoint + found.page
        return {"success": True, "commitUrl": f"{page}/commit/{made.sha}", "commitOid": made.sha, "hookOutput": "",
                "pullRequestUrl": f"{page}/discussions/{ref[8:]}" if ref.startswith("refs/pr/") else None}  # fmt: skip

    # -- downloads --------------------------------------------------------------------------------

    def resolve(self, kind: str | None, repo: str, revision: str, path: str) -> None:
        commit = self.repo(kind, repo).resolve(revision)
        file = commit.files.get(path)
        if file is None:
            raise HubError(404, f"Entry not found: {path}", "EntryNotFound", commit.sha)
        status, start, end = 200, 0, file.size
        if asked := re.fullmatch(r"bytes=(?:(\d+)-(\d*)|-(\d+))", self.headers.get("Range", "")):
            first, last, suffix = asked.groups()
            start = max(0, file.size - int(suffix)) if suffix else int(first)
            end = min(file.size, int(last) + 1) if last else file.size
            status = 206 if start < end else 416
        headers = {
            "Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "X-Repo-Commit": commit.sha,
            "ETag": f'"{file.sha256 if file.lfs else file.oid}"', "Content-Length": str(max(0, end - start)),
            "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rsplit('/', 1)[-1])}",
        }  # fmt: skip
        if status != 200:
            headers["Content-Range"] = f"bytes {f'{start}-{end - 1}' if status == 206 else '*'}/{file.size}"
        if file.lfs:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(file.size)}
        self.head(status, headers)
        if self.command != "HEAD" and start < end:
            with self.store.blob(file.sha256).open("rb") as source:
                source.seek(start)
                for left in range(end - start, 0, -CHUNK):
                    self.wfile.write(source.read(min(left, CHUNK)))


NAME = r"(?P<repo>[\w.-]+(?:/[\w.-]+)?)"
PAGE = rf"/(?:(?P<kind>datasets|spaces)/)?{NAME}"
REPO = rf"/api/(?P<kind>models|datasets|spaces)/{NAME}"
REV = "(?P<revision>[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", "/api/repos/create", Handler.create_repo),
    ("DELETE", "/api/repos/delete", Handler.delete_repo),
    ("GET", f"{REPO}/tree/{REV}(?:/(?P<path>.*))?", Handler.tree),
    ("POST", f"{REPO}/paths-info/{REV}", Handler.paths_info),
    ("GET", f"{REPO}/refs", Handler.refs),
    ("GET", f"{REPO}/commits/{REV}", Handler.commits),
    ("POST", f"{REPO}/branch/(?P<name>[^/]+)", Handler.branch),
    ("POST", f"{REPO}/tag/(?P<name>[^/]+)", Handler.tag),
    ("DELETE", f"{REPO}/(?P<group>branch|tag)/(?P<name>[^/]+)", Handler.delete_ref),
    ("POST", f"{REPO}/preupload/{REV}", Handler.preupload),
    ("GET", f"{REPO}/xet-(?:read|write)-token/{REV}", Handler.xet_token),
    ("POST", rf"{PAGE}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", "/_lfs/(?P<ticket>[^/]+)", Handler.lfs_put),
    ("POST", rf"{PAGE}\.git/info/lfs/objects/verify", Handler.lfs_verify),
    ("POST", f"{REPO}/commit/{REV}", Handler.commit),
    ("GET", f"{REPO}(?:/revision/{REV})?", Handler.info),
    ("GET", f"{PAGE}/(?:resolve|raw)/{REV}/(?P<path>.+)", Handler.resolve),
]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class LocalHub:
    """The server, as a context manager that gives its endpoint and serves in a thread until it is left."""

    def __init__(self, root: str | Path, port: int = 0, *, lfs: bool = False,
                 tokens: Mapping[str, str] = TOKENS, user: str = "tester") -> None:  # fmt: skip
        """`tokens` gives each known token's role, "write" or "read"; all are `user`'s."""
        self.store, self.lfs, self.tokens, self.user = Store(Path(root)), lfs, dict(tokens), user
        self.tickets: dict[str, str] = {}  # of LFS uploads under way, to the sha256 that each is for
        self.requests: deque[tuple[str, str, int]] = deque(maxlen=10_000)  # method, path, status: for tests
        self.server = Server(("127.0.0.1", port), type("BoundHandler", (Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def env(self, home: str | Path, token: str | None = "hf_local_write") -> dict[str, str]:
        """A client's environment variables. They count only if set before huggingface_hub is imported."""
        env = {
            "HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1",
            "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1", "DISABLE_SAFETENSORS_CONVERSION": "1",
        }  # fmt: skip
        return env | ({"HF_TOKEN": token} if token else {}) | ({"HF_HUB_DISABLE_XET": "1"} if self.lfs else {})

    def __enter__(self) -> str:
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()
        return self.endpoint

    def __exit__(self, *exc: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description="A local stand-in for the Hugging Face Hub, for tests.")
    parser.add_argument("--root", type=Path, required=True, help="folder that everything is kept in")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0, the default, takes a free one")
    parser.add_argument("--token", default="hf_local_write", help="the token that may write")
    parser.add_argument("--lfs", action="store_true", help="have big and binary files come through Git LFS")
    args = parser.parse_args()
    hub = LocalHub(args.root, args.port, lfs=args.lfs, tokens={**TOKENS, args.token: "write"})
    print(hub.endpoint, flush=True)
    try:
        hub.server.serve_forever()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
