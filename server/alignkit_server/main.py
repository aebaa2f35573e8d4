"""Builds the whole service and runs it as a process, on a socket that is bound before anything else starts."""

import asyncio
import contextlib
import ctypes
import errno
import socket
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI

from alignkit import startup
from alignkit.errors import AlignkitError
from alignkit_server.app import ROUTERS, create_app
from alignkit_server.chat.gateway import ChatGateway
from alignkit_server.chat.inside import InsideChat
from alignkit_server.chat.routes import router as chat
from alignkit_server.connections import server_config
from alignkit_server.database import Database
from alignkit_server.engines.adapters import unpublish
from alignkit_server.engines.caches import drop_cache
from alignkit_server.engines.manager import EngineManager
from alignkit_server.engines.weights import unpublish_weights
from alignkit_server.executors.protocol import Executor
from alignkit_server.executors.registry import executor_of
from alignkit_server.migrate import check_queue, migrate, start_lock
from alignkit_server.runner.dbos import DBOSRunner
from alignkit_server.runner.ledger import JobLedger
from alignkit_server.runner.step_services import StepServices
from alignkit_server.settings import Settings

SWITCH_SECONDS = 0.001
"""How long a thread that computes may keep Python from the event loop, at each of its turns; Python's own is 5 ms."""

ARENAS = 2
"""Memory pools that all threads share. glibc makes eight for each core, and each keeps the most that it ever held."""
_M_ARENA_MAX = -8


def build_app(
    settings: Settings, engines: EngineManager | None = None, executor: Executor | None = None
) -> FastAPI:
    """Build the whole service: the API, the durable queue, the training executor and the vLLM engines."""
    engines = engines or EngineManager(settings)
    executor = executor or executor_of(settings)
    stopping = threading.Event()

    def make_runner(database: Database) -> DBOSRunner:
        # Called in the event loop, after the gateway was made.
        models = InsideChat(app.state.chat, asyncio.get_running_loop(), settings, database)
        return DBOSRunner(StepServices(settings, JobLedger(database), executor, engines, stopping), models)

    def take_down(name: str, base_model: str) -> None:
        url = engines.running_endpoint(base_model)
        unpublish(settings, model_name=name, base_model=base_model, engine_url=url)
        engines.stop(name)
        unpublish_weights(settings, model_name=name)
        drop_cache(settings, name)

    app = create_app(
        settings,
        runner=make_runner,
        unpublish=take_down,
        routers=(chat, *ROUTERS),  # routes are tried in order, and chats are the most frequent
        engine_facts=engines.facts,
    )
    serve_requests = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        await asyncio.to_thread(engines.cleanup_leftovers)
        app.state.chat = ChatGateway(engines, settings.engine)
        async with serve_requests(app) as state:
            startup.end()
            try:
                yield state
            finally:  # engines first: the queue can stop only after jobs that wait for an engine give up
                stopping.set()
                await app.state.chat.aclose()
                await asyncio.to_thread(engines.shutdown)

    app.router.lifespan_context = lifespan
    return app


def serve(settings: Settings, app: FastAPI | None = None) -> None:
    """Run `app`, or the whole service, until SIGINT or SIGTERM.

    Raises AlignkitError if the port is taken, the database cannot be used, or the training executor does not answer.
    """
    with contextlib.suppress(AttributeError):  # a C library without arenas
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS)
    listener = listen(settings.host, settings.port)
    try:
        settings.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise AlignkitError(f"ALIGNKIT_HOME: cannot make {settings.root}: {error.strerror}") from error
    with start_lock(settings):  # here too: a failure while the application starts is logged with a traceback
        migrate(settings.sqlalchemy_url)
        if settings.database_url is None:
            check_queue(settings.queue_file)
    app = app or build_app(settings)
    host, port = listener.getsockname()[:2]
    address = settings.root / "address"
    address.write_text(f"http://{host}:{port}\n", encoding="utf-8")
    print(f"alignkit serves http://{host}:{port}/v1 from {settings.root}", flush=True)
    print(f"Open http://{host}:{port} in a browser to see it", flush=True)
    config = server_config(app, settings, timeout_graceful_shutdown=5)
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        address.unlink(missing_ok=True)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, opened early so that a taken port is reported before the database is touched."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise AlignkitError(f"port {port} of {host} {reason}: choose another with --port") from error
    return listener
