"""The endpoints of the Hugging Face Hub that an upload calls, on this machine. Files are part of the commit itself."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_secret_of_the_test"


@dataclass
class FakeHub:
    """What was sent to the server.

    Attributes:
        url: its address.
        requests: method and path of each request.
        created: bodies of the requests that create a repository.
        files: committed files by their paths.
        authorizations: values of this header in requests that write.
        may_write: whether the token may write.
    """

    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    authorizations: set[str | None] = field(default_factory=set)
    may_write: bool = True


@contextmanager
def serve_hub() -> Iterator[FakeHub]:
    """Serve until the context ends."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            self.answer(b"")

        def do_POST(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.answer(body)

        def answer(self, body: bytes) -> None:
            path = self.path.partition("?")[0]
            hub.requests.append((self.command, path))
            if self.command == "POST":  # the client asks some public questions without its token
                hub.authorizations.add(self.headers.get("Authorization"))
            status, content = reply(hub, self.command, path, body)
            encoded = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def reply(hub: FakeHub, method: str, path: str, body: bytes) -> tuple[int, object]:
    """Return the status and the content of an answer."""
    repository = "/api/models/org/name"
    if path == "/api/whoami-v2":
        return 200, {"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": "write"}}}
    if method == "POST" and not hub.may_write:
        return 403, {"error": "You don't have the rights to write under the namespace org"}
    if path == "/api/repos/create":
        hub.created.append(json.loads(body))
        return 200, {"url": f"{hub.url}/org/name"}
    if path == f"{repository}/preupload/main":
        names = [file["path"] for file in json.loads(body)["files"]]
        return 200, {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
    if path == "/api/validate-yaml":
        return 200, {"errors": [], "warnings": []}
    if path == f"{repository}/commit/main":
        for line in body.splitlines():
            record = json.loads(line)
            if record["key"] == "file":
                hub.files[record["value"]["path"]] = base64.b64decode(record["value"]["content"])
        return 200, {"success": True, "commitOid": "0" * 40, "commitUrl": f"{hub.url}/org/name/commit/{'0' * 40}"}
    if method == "GET" and path.startswith(f"{repository}"):
        return 200, {"id": "org/name", "sha": "0" * 40, "siblings": []}
    return 404, {"error": f"{method} {path}"}
