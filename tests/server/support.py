"""A whole service on a free port of this machine, with a runner that only records what it is asked."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from openai import OpenAI
from safetensors.numpy import save_file

from alignkit_server.app import ROUTERS, create_app
from alignkit_server.chat.gateway import ChatGateway, Engines
from alignkit_server.chat.routes import router as chat
from alignkit_server.connections import server_config
from alignkit_server.database import Database
from alignkit_server.engines.errors import EngineError
from alignkit_server.keys.scopes import PROJECT_SCOPES
from alignkit_server.keys.service import issue_key
from alignkit_server.main import listen
from alignkit_server.runner.ledger import JobLedger, JobRecord
from alignkit_server.services import Services
from alignkit_server.settings import Settings

BASE_MODEL = "tiny-llama"
TINY_CONFIG = json.dumps(
    {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 512,
    }
)
"""The config.json of a model that fits anywhere: a job of one that does not is refused."""
ADAPTER_RANK = 8
DEADLINE_SECONDS = 120.0
"""Reached by what is broken alone, so that a busy machine fails no test."""


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """The server's event loop, where there is one."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


@dataclass
class RecordingRunner:
    """Records; what it enqueues it must find committed."""

    database: Database
    loop: asyncio.AbstractEventLoop | None = field(default_factory=_running_loop)
    started: bool = False
    enqueued: list[JobRecord] = field(default_factory=list)
    cancelled: list[JobRecord] = field(default_factory=list)
    announced: list[str] = field(default_factory=list)
    evaluated: list[str] = field(default_factory=list)
    probe: Callable[[], None] = lambda: None

    def start(self) -> None:
        self.started = True

    def stop(self) -> None:
        self.started = False

    def enqueue(self, job_id: str) -> None:
        self.enqueued.append(JobLedger(self.database).get(job_id))

    def cancel(self, job_id: str) -> None:
        self.cancelled.append(JobLedger(self.database).get(job_id))

    def announce(self, job_id: str) -> None:
        self.announced.append(job_id)

    def evaluate(self, run_id: str) -> None:
        self.evaluated.append(run_id)


class NoEngines:
    """Engines that are never available."""

    def running_endpoint(self, base_model: str) -> None:
        pass

    def lease(self, base_model: str, rank: int = 0) -> None:
        pass

    def endpoint(self, base_model: str, rank: int = 0) -> str:
        raise EngineError("engine_unavailable", f"there is no engine for {base_model}")

    def hold(self, base_model: str, project_id: str = "") -> None:
        pass

    def release(self, base_model: str, project_id: str = "") -> None:
        pass

    def replace(self, model: str) -> bool:
        return True


@dataclass(frozen=True)
class Running:
    """A service that answers."""

    url: str
    settings: Settings
    services: Services
    chat: ChatGateway
    unpublished: list[tuple[str, str]]

    @property
    def runner(self) -> RecordingRunner:
        runner = self.services.runner
        assert isinstance(runner, RecordingRunner)
        return runner

    @property
    def ledger(self) -> JobLedger:
        return JobLedger(self.services.database)

    def new_key(self, project: str, *scopes: str) -> str:
        """A key of that project, created if missing, with all scopes of a project by default."""
        with self.services.database.writing() as session:
            return issue_key(session, project, scopes or PROJECT_SCOPES)

    def client(self, key: str) -> OpenAI:
        """The official client, which must not need a second try."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, admin_api_key=key, max_retries=0)

    def http(self, key: str | None) -> httpx.Client:
        """Plain HTTP, for what the official client does not offer."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=DEADLINE_SECONDS, trust_env=False)


@contextmanager
def serve(home: Path, *, engines: Engines | None = None, **options: Any) -> Iterator[Running]:
    """Run a service in a thread; it has one base model, and no engine unless one is given."""
    add_base_model(home, BASE_MODEL)
    unpublished: list[tuple[str, str]] = []
    options.setdefault("max_file_bytes", 10 * 2**20)
    options.setdefault("sweep_seconds", 3600.0)  # tests sweep where they want it
    settings = Settings(home=home, **options)
    app = create_app(
        settings,
        runner=RecordingRunner,
        unpublish=lambda name, base: unpublished.append((name, base)),
        routers=(*ROUTERS, chat),
        engine_facts=getattr(engines, "facts", list),
    )
    gateway = app.state.chat = ChatGateway(engines or NoEngines())
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(server_config(app, settings, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        assert server.started
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield Running(url, settings, app.state.services, gateway, unpublished)
    finally:
        server.should_exit = True
        thread.join(DEADLINE_SECONDS)
        listener.close()


def add_base_model(home: Path, name: str) -> None:
    """A folder that the service accepts as a base model."""
    folder = home / "models" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")


def write_adapter(folder: Path) -> Path:
    """The files of a job's adapter that the service reads; the weights fit no model."""
    folder.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "r": ADAPTER_RANK,
        "lora_alpha": 24,
        "target_modules": ["q_proj", "v_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    zeros = np.zeros((ADAPTER_RANK, 8), dtype=np.float32)
    save_file({"base_model.model.q_proj.lora_A.weight": zeros}, folder / "adapter_model.safetensors")
    return folder


def wait_until(condition: Callable[[], object], seconds: float = DEADLINE_SECONDS) -> None:
    """Wait for the condition, not for ever."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def pairs(count: int = 3) -> bytes:
    """Preference rows in OpenAI's form, as a file's bytes."""
    rows = (
        {
            "input": {"messages": [{"role": "user", "content": f"What is {n} plus {n}?"}]},
            "preferred_output": [{"role": "assistant", "content": f"{2 * n}."}],
            "non_preferred_output": [{"role": "assistant", "content": "That depends."}],
        }
        for n in range(count)
    )
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def upload(
    client: OpenAI, content: bytes = b"", name: str = "pairs.jsonl", purpose: Any = "fine-tune"
) -> str:
    """Upload a file, valid pairs unless told otherwise; its id."""
    return client.files.create(file=(name, content or pairs()), purpose=purpose).id


def method(**hyperparameters: Any) -> Any:
    """The `method` of a job."""
    return {"type": "f_dpo", "f_dpo": {"hyperparameters": hyperparameters}}


def create_job(client: OpenAI, **changes: Any) -> Any:
    """Create a job that is in order but for `changes`."""
    request: dict[str, Any] = {"model": BASE_MODEL, "method": method()} | changes
    if "training_file" not in request:
        request["training_file"] = upload(client)
    return client.fine_tuning.jobs.create(**request)
