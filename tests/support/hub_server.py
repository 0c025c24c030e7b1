"""A model hub on this machine that its own client can write to and read from, as far as the library asks of it.

Repositories are lists of commits in memory. Large files go through Git LFS' basic transfer, as on the real hub without
its newer storage; README.md and other small files travel inside the commit.
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_tests"


class FakeHub(ThreadingHTTPServer):
    """Serves until `close`; `repositories` has the commits of each, oldest first, as files by name."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.blobs: dict[str, bytes] = {}
        self.sent: list[int] = []
        """Bytes of each answer with a file."""
        self.refused: set[str] = set()
        """Last words of paths that are answered with 403, as to a token that may only read."""
        self.broken: set[str] = set()
        """Last words of paths to which the connection is closed without an answer."""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def close(self):
        self.shutdown()
        self.server_close()

    def commit(self, repository, files):
        self.repositories.setdefault(repository, [{}]).append({**self.files(repository), **files})

    def files(self, repository):
        return self.repositories.get(repository, [{}])[-1]

    def head(self, repository):
        return hashlib.sha1(f"{repository} {len(self.repositories[repository])}".encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self):
        assert isinstance(self.server, FakeHub)
        return self.server

    def do_GET(self):
        self._answer(b"")

    def do_HEAD(self):
        self._answer(b"")

    def do_POST(self):
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def do_PUT(self):
        self.do_POST()

    def _answer(self, body):
        path = unquote(urlsplit(self.path).path).strip("/")
        last = path.split("/")
        if {*last} & self.hub.broken:
            self.close_connection = True
            return
        if {*last} & self.hub.refused:
            return self._json({"error": "this token may only read"}, 403)
        if path == "api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "api/repos/create":
            return self._create(json.loads(body))
        if last[0] == "blobs":
            self.hub.blobs[last[1]] = body
            return self._json({})
        if last[0] == "api":
            words = 3 if "".join(last[2:3]) in self.hub.repositories else 4  # models of old have names without an owner
            return self._api("/".join(last[2:words]), last[words:], body)
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._json({"objects": [self._upload(each) for each in json.loads(body)["objects"]]})
        name, _, file = path.partition("/resolve/")
        return self._file(name, file.partition("/")[2])

    def _create(self, asked):
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid credentials"}, 401)
        name = f"{asked['organization']}/{asked['name']}"
        self.hub.repositories.setdefault(name, [{}])
        self.hub.private[name] = asked.get("private", False) or asked.get("visibility") == "private"
        return self._json({"url": f"{self.hub.address}/{name}"})

    def _api(self, name, rest, body):
        if name not in self.hub.repositories:
            return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if not rest or rest[0] == "revision":
            return self._json(self._about(name))
        if rest[0] == "tree":  # transformers looks for a folder of chat templates
            return self._json({"error": "no such entry"}, 404, {"X-Error-Code": "EntryNotFound"})
        if rest[0] == "preupload":
            files = [each["path"] for each in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in files}
            return self._json(
                {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]}
            )
        assert rest[0] == "commit"
        return self._commit(name, [json.loads(line) for line in body.splitlines()])

    def _about(self, name):
        def sibling(path, data):
            found = {"rfilename": path, "size": len(data), "blobId": _git(data)}
            if path.endswith(".safetensors"):
                found["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            return found

        files = [sibling(*each) for each in self.hub.files(name).items()]
        return {"id": name, "sha": self.hub.head(name), "private": self.hub.private.get(name, False), "siblings": files}

    def _upload(self, asked):
        href = f"{self.hub.address}/blobs/{asked['oid']}"
        return {"oid": asked["oid"], "size": asked["size"], "actions": {"upload": {"href": href}}}

    def _commit(self, name, lines):
        if lines[0]["value"].get("parentCommit") not in (None, self.hub.head(name)):
            return self._json({"error": "A commit has happened since. Please refresh and try again."}, 412)
        files = dict(self.hub.files(name))
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            else:
                del files[value["path"]]
        self.hub.repositories[name].append(files)
        head = self.hub.head(name)
        return self._json({"commitUrl": f"{self.hub.address}/{name}/commit/{head}", "commitOid": head})

    def _file(self, name, path):
        data = self.hub.files(name).get(path)
        if data is None:
            return self._json({"error": "no such entry"}, 404, {"X-Error-Code": "EntryNotFound"})
        headers, status = {"ETag": f'"{_git(data)}"', "X-Repo-Commit": self.hub.head(name)}, 200
        if (span := self.headers.get("Range", "")).startswith("bytes="):
            first, last = span.removeprefix("bytes=").split("-")
            status, data = 206, data[int(first) : int(last) + 1 if last else None]
        return self._send(data, status, headers)

    def _json(self, value, status=200, headers=None):
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, data, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
            if "ETag" in headers:
                self.hub.sent.append(len(data))

    def log_message(self, format, *args):
        pass


def _git(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
