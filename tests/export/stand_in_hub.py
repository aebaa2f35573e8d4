"""A stand-in for the Hugging Face hub, with one repository; it answers as the hub does, and keeps commits."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import huggingface_hub
import pytest

SECRET = "hf_verysecret"


class Hub(ThreadingHTTPServer):
    """A hub with one repository; it keeps commits."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: list[str] = []
        self.commits: list[list[dict[str, Any]]] = []
        self.created: dict[str, Any] = {}
        self.status = 200

    def pushed(self) -> dict[str, bytes]:
        """The files of the only commit, by path."""
        (commit,) = self.commits
        values = [line["value"] for line in commit if line["key"] == "file"]
        return {value["path"]: base64.b64decode(value["content"]) for value in values}

    @property
    def address(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """The routes that an upload uses."""

    server: Hub

    def do_POST(self) -> None:
        """Create a repository, or commit."""
        body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
        if self.path.endswith("/repos/create"):
            self.server.created = json.loads(body)
            self.answer({"url": f"{self.server.address}/me/model", "id": "1", "name": "me/model"})
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            self.answer(
                {
                    "files": [
                        {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked
                    ]
                }
            )
        elif self.path.endswith("/validate-yaml"):
            self.answer({"errors": [], "warnings": []})
        else:
            self.server.commits.append([json.loads(line) for line in body.splitlines()])
            self.answer(
                {"commitUrl": "https://huggingface.co/me/model/commit/1", "commitOid": "1", "success": True}
            )

    def do_GET(self) -> None:
        """List the files, or describe the repository."""
        files = [
            {"type": "file", "path": name, "rfilename": name, "size": 1, "oid": "0"}
            for name in self.server.files
        ]
        if "/tree/" in self.path:
            self.answer(files)
        else:
            self.answer({"id": "me/model", "siblings": files, "sha": "0" * 40, "private": True})

    def answer(self, value: Any) -> None:
        """Send `value`, or the server's status with the token in its text, as a careless hub would."""
        content = json.dumps(value if self.server.status == 200 else {"error": SECRET}).encode()
        self.send_response(self.server.status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def running_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve a hub that every client of this process talks to."""
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    api = huggingface_hub.HfApi(endpoint=server.address, token=SECRET)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()
