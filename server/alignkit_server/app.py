"""Builds the FastAPI application; its parts open in order at start and close in reverse order."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.openapi.utils import get_openapi

from alignkit import __version__
from alignkit_server import errors, health, logs, tracing
from alignkit_server.audit.routes import router as audit
from alignkit_server.catalog.model_catalog import ModelCatalog
from alignkit_server.checkpoints.routes import router as checkpoints
from alignkit_server.children.runner import ChildRunner
from alignkit_server.database import Database
from alignkit_server.dependencies import require_scope
from alignkit_server.engine_list.routes import router as engine_list
from alignkit_server.engines.facts import ListEngines
from alignkit_server.evals.routes import router as evals
from alignkit_server.files.routes import router as files
from alignkit_server.first_key import ensure_first_key
from alignkit_server.jobs.routes import router as jobs
from alignkit_server.keys.authentication import KeyAuthentication
from alignkit_server.limits.body import BodyLimit, BodyShape
from alignkit_server.limits.open import Held, OpenRequests
from alignkit_server.limits.pace import Pace
from alignkit_server.limits.rates import RateLimit, open_storage
from alignkit_server.limits.request_turns import RequestTurns
from alignkit_server.methods.routes import router as methods
from alignkit_server.metrics.collector import RequestMetrics, ServiceCollector
from alignkit_server.metrics.routes import PATH as METRICS_PATH
from alignkit_server.metrics.routes import router as metrics
from alignkit_server.migrate import migrate, start_lock
from alignkit_server.models.exports import EXPORTS_AT_ONCE, export_too_large
from alignkit_server.models.routes import router as models
from alignkit_server.modes import mend_modes, private_folders
from alignkit_server.page import routes as page
from alignkit_server.pools.file_check_pool import FileCheckPool
from alignkit_server.preflight.routes import router as preflight
from alignkit_server.projects.routes import own_key
from alignkit_server.projects.routes import router as projects
from alignkit_server.repeating import Repeating
from alignkit_server.request_log import RequestLog
from alignkit_server.reserve import Reserve
from alignkit_server.services import JobRunner, Services, Unpublish
from alignkit_server.settings import Settings
from alignkit_server.storage.runs import RunStorage
from alignkit_server.sweeper.sweeper import Sweeper
from alignkit_server.sweeps.advancing import advance
from alignkit_server.sweeps.routes import router as sweeps
from alignkit_server.uploads.routes import router as uploads
from alignkit_server.vault import open_vault
from alignkit_server.webhooks.routes import router as webhooks
from alignkit_server.webhooks.signing import seal_stored

ROUTERS: tuple[APIRouter, ...] = (
    files,
    uploads,
    methods,
    preflight,
    jobs,
    sweeps,
    checkpoints,
    models,
    evals,
    webhooks,
    projects,
    own_key,
    audit,
    engine_list,
)
"""Routers whose routes need a key with a scope."""
SWEEP_POLL_SECONDS = 2.0
"""After which a server looks again whether a sweep's jobs can be compared."""
RunnerFactory = Callable[[Database], JobRunner]


def create_app(
    settings: Settings,
    *,
    runner: RunnerFactory | None = None,
    unpublish: Unpublish = lambda _name, _base: None,
    routers: Sequence[APIRouter] = ROUTERS,
    engine_facts: ListEngines = list,
) -> FastAPI:
    """Build the service. Without a `runner`, jobs are accepted and wait, and /readyz reports that.

    `unpublish` takes a deleted model out of serving; `engine_facts` describes the engines, for
    /metrics and for admins.
    """
    logs.configure()
    requests = RequestMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with open_services(settings, runner, unpublish) as services:
            app.state.services = services
            collector = ServiceCollector(services.database, engine_facts)
            requests.registry.register(collector)
            try:
                yield
            finally:
                requests.registry.unregister(collector)
        stop_tracing()

    app = FastAPI(
        title="alignkit",
        version=__version__,
        description="Alignment fine-tuning behind OpenAI's API.",
        lifespan=lifespan,
        docs_url=None,  # the page's own, which loads nothing from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.request_metrics = requests
    app.state.engine_facts = engine_facts
    app.include_router(health.router)
    page.install(app)
    admin_only = [] if settings.metrics_open else [Depends(require_scope)]
    app.include_router(metrics, dependencies=admin_only)
    for router in routers:
        app.include_router(router, dependencies=[Depends(require_scope)])
    errors.install(app)
    # The middleware added last sees a request first.
    app.add_middleware(BodyShape)
    app.add_middleware(RequestTurns)  # a body that comes slowly takes no turn
    app.add_middleware(BodyLimit, max_bytes=settings.max_request_bytes)
    held = Held()
    app.add_middleware(OpenRequests, defaults=settings.limits, held=held)
    app.add_middleware(RateLimit, defaults=settings.limits, storage=open_storage(settings.rate_limit_storage))
    app.add_middleware(Pace, defaults=settings.limits, held=held)
    also_open = frozenset({METRICS_PATH} if settings.metrics_open else ())
    app.add_middleware(KeyAuthentication, also_open=also_open)
    app.add_middleware(RequestLog, observe=requests.observe)
    stop_tracing = tracing.install(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


@contextmanager
def open_services(
    settings: Settings,
    runner: RunnerFactory | None,
    unpublish: Unpublish,
) -> Iterator[Services]:
    """Open the parts of the running service (folders, schema, first key, runner); close them in reverse order."""
    settings.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in (*private_folders(settings), settings.models_dir):
        folder.mkdir(parents=True, exist_ok=True)
    with start_lock(settings):
        migrate(settings.sqlalchemy_url)
        vault = open_vault(settings.root)
        database = Database(settings.sqlalchemy_url)
        seal_stored(database, vault)
        ensure_first_key(database, settings)
    mend_modes(settings)
    runs = RunStorage(settings, database)
    children = ChildRunner(memory_bytes=settings.file_check_bytes, seconds=settings.file_check_seconds)
    exporting = ChildRunner(
        memory_bytes=settings.export_bytes, seconds=settings.export_seconds, refusal=export_too_large
    )
    services = Services(
        settings=settings,
        database=database,
        catalog=ModelCatalog(settings, database),
        runner=runner(database) if runner else None,
        unpublisher=unpublish,
        vault=vault,
        runs=runs,
        sweeper=Sweeper(settings, database, runs),
        reserve=Reserve(settings.root),
        children=children,
        file_checks=FileCheckPool(children),
        exports=FileCheckPool(exporting, at_once=EXPORTS_AT_ONCE, of_a_project=1),
        joins=FileCheckPool(children, of_a_project=1),
        records=FileCheckPool(children),
    )
    advancing = Repeating("sweeps", lambda: advance(database, services), SWEEP_POLL_SECONDS)
    try:
        services.reserve.start()
        if services.runner is not None:
            services.runner.start()
            services.runner_started = True
            mend_modes(settings)  # the queue has a database of its own
        services.sweeper.start()
        advancing.start()
        yield services
    finally:
        advancing.stop()
        services.sweeper.stop()
        children.close()
        exporting.close()
        services.runner_started = False
        if services.runner is not None:
            services.runner.stop()
        services.reserve.stop()
        database.close()


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's OpenAPI document, without the 422 it adds: this service answers a refused request with 400."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        for path in schema["paths"].values():
            for operation in path.values():
                operation.get("responses", {}).pop("422", None)
        for unused in ("HTTPValidationError", "ValidationError"):
            schema.get("components", {}).get("schemas", {}).pop(unused, None)
        app.openapi_schema = schema
    return app.openapi_schema
