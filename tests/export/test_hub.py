"""Pushing to the hub, against a stand-in that answers as the hub does."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from alignkit.errors import ExportError
from alignkit.export import Repository, push

SECRET = "hf_verysecret"


class Hub(ThreadingHTTPServer):
    """A hub with one repository; it keeps commits."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: list[str] = []
        self.commits: list[list[dict[str, Any]]] = []
        self.created: dict[str, Any] = {}
        self.status = 200

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


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    api = huggingface_hub.HfApi(endpoint=server.address, token=SECRET)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text("---\ntags: [alignkit]\n---\n# model\n")
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_a_folder_becomes_one_commit_in_a_private_repository(hub: Hub, folder: Path) -> None:
    assert push(folder, Repository("me/model")) == f"{hub.address}/me/model"
    assert hub.created["visibility"] == "private"
    assert hub.created["name"] == "model"
    (commit,) = hub.commits
    assert sorted(line["value"]["path"] for line in commit if line["key"] == "file") == [
        "README.md",
        "config.json",
    ]


def test_a_repository_with_files_is_left_alone_without_force(hub: Hub, folder: Path) -> None:
    hub.files = [".gitattributes", "model.safetensors"]
    with pytest.raises(
        ExportError, match=r"already has 1 files, such as model.safetensors: replace them with --force"
    ):
        push(folder, Repository("me/model"))
    assert not hub.commits
    push(folder, Repository("me/model", private=False), force=True)
    (commit,) = hub.commits
    assert {"key": "deletedFile", "value": {"path": "model.safetensors"}} in commit


@pytest.mark.parametrize(
    ("status", "why"), [(401, "hf auth login"), (403, "write access"), (500, "try again later")]
)
def test_a_refusal_is_one_sentence_without_the_token(hub: Hub, folder: Path, status: int, why: str) -> None:
    hub.status = status
    with pytest.raises(ExportError, match=f"status {status}: .*{why}") as error:
        push(folder, Repository("me/model"))
    assert SECRET not in str(error.value)


def test_a_name_that_no_repository_can_have_is_refused(folder: Path) -> None:
    with pytest.raises(ExportError, match="cannot push to"):
        push(folder, Repository("no such--name/at all"))
