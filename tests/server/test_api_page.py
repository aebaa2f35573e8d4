"""docs/api.md runs: its shell examples as one script, its Python examples as another, against a live service.

Training is only queued, and the engine is a stand-in; the rest is real.
"""

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from alignkit_server.catalog.names import model_name
from alignkit_server.engines.facts import Lease
from alignkit_server.webhooks.sender import sign
from tests.docs.blocks import blocks_of
from tests.server.shapes import conforms
from tests.server.support import BASE_MODEL, TINY_CONFIG, Running, create_job, pairs, serve, write_adapter
from tests.tiny import build_tiny_tokenizer
from tests.tree import ROOT

PAGE = ROOT / "docs" / "api.md"


def blocks(language: str, page: Path = PAGE) -> str:
    """A page's fenced blocks of a language, one after the other."""
    return "\n".join(block.text for block in blocks_of(page) if block.language == language)


class Engine(BaseHTTPRequestHandler):
    """Answers chat and completions as vLLM does, with one word."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        common = {"id": "x", "created": 1, "model": body["model"]}
        if "prompt" in body:
            choice: Any = {"index": 0, "text": "Hi", "finish_reason": "stop", "logprobs": None}
            self.answer("application/json", common | {"object": "text_completion", "choices": [choice]})
        elif body.get("stream"):
            choice = {"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}
            self.answer(
                "text/event-stream", common | {"object": "chat.completion.chunk", "choices": [choice]}
            )
        else:
            message = {"role": "assistant", "content": "Hi"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self.answer("application/json", common | {"object": "chat.completion", "choices": [choice]})

    def answer(self, kind: str, content: dict[str, Any]) -> None:
        text = json.dumps(content)
        raw = (f"data: {text}\n\ndata: [DONE]\n\n" if kind == "text/event-stream" else text).encode()
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        pass


@dataclass(frozen=True)
class Engines:
    """One engine for every model."""

    url: str

    def running_endpoint(self, base_model: str) -> str:
        return self.url

    def lease(self, base_model: str, rank: int = 0) -> Lease:
        return Lease(self.url, lambda: None)

    def endpoint(self, base_model: str, rank: int = 0) -> str:
        return self.url

    def hold(self, base_model: str, project_id: str = "") -> None:
        pass

    def release(self, base_model: str, project_id: str = "") -> None:
        pass


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    engine = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    threading.Thread(target=engine.serve_forever, daemon=True).start()
    engines = Engines(f"http://127.0.0.1:{engine.server_address[1]}")
    try:
        with serve(tmp_path_factory.mktemp("home"), engines=engines) as running:
            folder = running.settings.models_dir / BASE_MODEL
            build_tiny_tokenizer(folder)
            (folder / "config.json").write_text(TINY_CONFIG)
            yield running
    finally:
        engine.shutdown()
        engine.server_close()


@pytest.fixture
def names(
    service: Running, key: str, project: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """The objects that the page's examples presuppose."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_bytes(pairs(20))
    write_adapter(tmp_path / "adapter")
    with service.client(key) as client:
        job = create_job(client)
    tuned = model_name(BASE_MODEL, project, "demo", job.id)
    service.ledger.add_model(
        job.id, name=tuned, base_model=BASE_MODEL, kind="adapter", path=str(tmp_path / "adapter")
    )
    service.ledger.transition(job.id, "succeeded", only_from=("queued",), fine_tuned_model=tuned)
    with service.client(service.new_key(f"{project}-other")) as other:
        other_project = service.ledger.get(create_job(other).id).project_id
    return {
        "BASE": f"{service.url}/v1",
        "KEY": key,
        "ADMIN_KEY": service.new_key("admins", "admin"),
        "MODEL": BASE_MODEL,
        "TUNED": tuned,
        "OTHER_PROJECT": other_project,
    }


def test_the_python_examples_run(names: dict[str, str]) -> None:
    namespace: dict[str, Any] = dict(names)
    exec(compile(blocks("python"), str(PAGE), "exec"), namespace)
    conforms(namespace["file"])
    conforms(namespace["job"])
    conforms(namespace["upload"])
    assert namespace["client"].fine_tuning.jobs.retrieve(namespace["job"].id).status == "cancelled"
    assert namespace["chunk"].choices[0].delta.content == "Hi"
    for answer in (
        namespace["client"].chat.completions.create(model=names["TUNED"], messages=[]),
        namespace["client"].completions.create(model=names["MODEL"], prompt="Hello"),
    ):
        conforms(answer)
    body = json.dumps({"id": "evt_1", "object": "event", "created_at": 1, "data": {"id": "ftjob-1"}})
    timestamp = int(time.time())
    headers = {
        "webhook-id": "evt_1",
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign([namespace["endpoint"].signing_secret], "evt_1", timestamp, body),
    }
    assert namespace["receive"](body.encode(), headers) == "ftjob-1"


def finish(service: Running, job_id: str, folder: Path) -> None:
    """Let a queued job succeed, with an adapter."""
    name = model_name(BASE_MODEL, "p", None, job_id)
    service.ledger.add_model(job_id, name=name, base_model=BASE_MODEL, kind="adapter", path=str(folder))
    service.ledger.transition(job_id, "succeeded", only_from=("queued",), fine_tuned_model=name)


def test_the_readme_s_script_runs(
    service: Running, names: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it is written, but for address, key and model; where it waits, its job succeeds."""
    code = as_here(blocks("python", ROOT / "README.md").partition("from alignkit import")[0], names)
    assert code.count("time.sleep(5)") == 1
    code = code.replace("time.sleep(5)", "finish(job.id)")
    exec(
        compile(code, "README.md", "exec"), {"finish": lambda job: finish(service, job, tmp_path / "adapter")}
    )
    assert capsys.readouterr().out == "Hi\n"


def test_a_script_for_openai_runs_with_the_changes_of_the_migration_page(
    service: Running, names: dict[str, str]
) -> None:
    diff = blocks("diff", PAGE.with_name("migrate.md"))
    before, after = (
        "".join(line[1:] + "\n" for line in diff.splitlines() if line[:1] != dropped) for dropped in "+-"
    )
    compile(before, "before", "exec")
    namespace: dict[str, Any] = {}
    exec(compile(as_here(after, names), "migrate.md", "exec"), namespace)
    assert namespace["job"].status == "queued"


def as_here(code: str, names: dict[str, str]) -> str:
    """A page's script for the service of these tests."""
    here = {
        "http://127.0.0.1:8000/v1": names["BASE"],
        "sk-…": names["KEY"],
        "smollm2-135m-instruct": names["MODEL"],
    }
    for theirs, ours in here.items():
        assert theirs in code
        code = code.replace(theirs, ours)
    return code


@pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("jq")), reason="the page's shell examples need curl and jq"
)
def test_the_shell_examples_run(names: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", blocks("sh")],
        env={"PATH": os.environ["PATH"], "no_proxy": "*", **names},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    assert '"status":"cancelled"' in done.stdout
    assert "data: {" in done.stdout
    assert (tmp_path / "recipe.yaml").read_text().startswith("model:")
    assert list(tmp_path.glob("ft_*/adapter_config.json"))


def test_every_route_is_on_the_page(service: Running, key: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    with service.http(key) as http:
        paths = http.get("/openapi.json").json()["paths"]
    parts = {part for path in paths if path.startswith("/v1") for part in path.split("/") if "{" not in part}
    missing = {part for part in parts - {"v1", ""} if part not in page and part not in SAID_BY_THE_CLIENT}
    assert not missing


SAID_BY_THE_CLIENT = {"webhook_event_types", "content", "complete", "rotate_secret"}
"""Parts of paths that the page's Python examples reach by a method of another spelling."""
