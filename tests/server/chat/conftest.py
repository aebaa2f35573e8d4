"""The chat routes over real HTTP on both sides: uvicorn, and an engine that is a process of its own."""

import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from alignkit_server import errors
from alignkit_server.chat.gateway import ChatGateway
from alignkit_server.chat.routes import router
from alignkit_server.database import Database
from alignkit_server.dependencies import get_principal, get_services
from alignkit_server.engines.manager import EngineManager
from alignkit_server.vault import Vault
from tests.server.engines.support import FakeEngines, gone, make_settings, wait_until

TUNED = "ft:tiny:default:demo:a1b2c3d4"
OWN_TEMPLATE = "ft:tiny:default:template:a1b2c3d4"
"""One that was trained with a template which is not its base model's."""
LARGE = "ft:tiny:default:large:a1b2c3d4"
"""One of a larger LoRA rank than the others'."""

SECRET_KEY = b"QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVowMTIzNDU="


class CountingManager(EngineManager):
    """Counts how often it was asked for an endpoint."""

    calls = 0

    def endpoint(self, base_model: str, rank: int = 0) -> str:
        self.calls += 1
        return super().endpoint(base_model, rank)


class Service:
    """A running server with chat routes only."""

    def __init__(self, directory: Path) -> None:
        self.gate = directory / "gate"
        self.fakes = FakeEngines(directory)
        self.resolved: list[str] = []
        self.settings = make_settings(directory / "home", "tiny", "missing")
        self.settings.engine.max_answer_bytes = 2**20
        self.manager = CountingManager(self.settings, build_command=self.fakes)
        self._server = uvicorn.Server(uvicorn.Config(self._app(), port=0, log_level="warning"))
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        wait_until(lambda: self._server.started)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=20)

    def _app(self) -> FastAPI:
        @contextlib.asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            app.state.chat = ChatGateway(self.manager, self.settings.engine)
            yield
            await app.state.chat.aclose()

        app = FastAPI(lifespan=lifespan)
        errors.install(app)
        app.include_router(router)
        catalog = SimpleNamespace(resolve=self._resolve)
        database = Database("sqlite:///never-opened")
        services = SimpleNamespace(
            catalog=catalog, database=database, settings=self.settings, vault=Vault(SECRET_KEY)
        )
        app.dependency_overrides[get_services] = lambda: services
        app.dependency_overrides[get_principal] = lambda: SimpleNamespace(project_id="mine", limits={})
        return app

    def _resolve(self, name: str, project_id: str) -> SimpleNamespace:
        """The catalog of these tests: one project with one tuned model."""
        self.resolved.append(name)
        assert project_id == "mine"
        if name not in {"tiny", TUNED, OWN_TEMPLATE, LARGE}:
            raise errors.ApiError(
                404, f"The model {name!r} does not exist.", param="model", code="model_not_found"
            )
        own = name == OWN_TEMPLATE
        return SimpleNamespace(
            name=name,
            engine="tiny",
            chat_template="{{ messages }}" if own else None,
            stop_token_ids=(7,) if own else (),
            lora_rank=64 if name == LARGE else 0,
        )

    def ask(self, content: str, model: str = TUNED) -> httpx.Response:
        """A chat request whose answer is read whole."""
        body = {"model": model, "messages": [{"role": "user", "content": content}]}
        return self.client.post("/v1/chat/completions", json=body)

    @contextlib.contextmanager
    def stream(self, content: str) -> Iterator[httpx.Response]:
        """A chat request whose answer is read as it comes; leaving hangs up."""
        body = {"model": TUNED, "stream": True, "messages": [{"role": "user", "content": content}]}
        with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
            yield response

    def close(self) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join(20)
        self.manager.shutdown()
        assert not self._thread.is_alive()
        assert all(gone(pid) for pid in self.fakes.pids())


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    yield service
    service.close()
