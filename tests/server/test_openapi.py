"""The description is true: what schemathesis makes of it is answered as it says, whatever that is.

No 5xx, no status and no body that is not described, nothing accepted that the description forbids, no way round the
key. Some ids are real, so that requests get further than 404.
"""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from sqlalchemy import select

from alignkit_server.app import ROUTERS, create_app, open_services
from alignkit_server.chat.gateway import ChatGateway
from alignkit_server.chat.routes import router as chat
from alignkit_server.clock import now
from alignkit_server.engines.errors import EngineError
from alignkit_server.runner.ledger import JobLedger
from alignkit_server.services import Services
from alignkit_server.settings import Settings
from alignkit_server.tables import ApiKey, Endpoint, Eval, EvalItem, File, Project, Sweep, Upload
from alignkit_server.vault import open_vault
from alignkit_server.webhooks.signing import new_secret
from tests.server.evals.test_durable import store_run
from tests.server.runner.test_ledger import store_job
from tests.server.support import BASE_MODEL, RecordingRunner, add_base_model

UNKNOWN_HEADER = "x-schemathesis-unknown-property"
KEY = "sk-of-these-tests"
FILE, UPLOAD, ENDPOINT, MODEL = "file-seed", "upload_seed", "we_seed", "ft:seed:ckpt-step-1"
SWEEP = "ftsweep-seed"
REAL = {
    "file_id": FILE,
    "upload_id": UPLOAD,
    "endpoint_id": ENDPOINT,
    "model": MODEL,
    "checkpoint": MODEL,
    "sweep_id": SWEEP,
}


class NoEngines:
    """An engine that cannot be had."""

    def running_endpoint(self, base_model: str) -> None:
        pass

    def lease(self, base_model: str, rank: int = 0) -> None:
        pass

    def endpoint(self, base_model: str, rank: int = 0) -> str:
        raise EngineError("engine_unavailable", "vLLM is not installed")

    def hold(self, base_model: str, project_id: str = "") -> None:
        pass

    def release(self, base_model: str, project_id: str = "") -> None:
        pass


def build(home: Path) -> FastAPI:
    settings = Settings(home=home, max_file_bytes=2**20)
    return create_app(settings, runner=RecordingRunner, routers=(*ROUTERS, chat))


class Current:
    """The application of this run, behind a name that is there when the tests are collected."""

    app: FastAPI

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


current = Current()


def load(*phases: str) -> Any:
    """The description, and which of schemathesis's ways of making requests from it are taken."""
    schema = schemathesis.openapi.from_dict(build(Path("not-made")).openapi())
    schema.app = current
    schema.config.phases.update(phases=list(phases))
    schema.auth()(Key)
    return schema


class Key:
    """How requests are let in; the checks of what happens without it leave it out."""

    def get(self, *_: Any) -> str:
        return KEY

    def set(self, case: Any, data: str, *_: Any) -> None:
        case.headers["authorization"] = f"Bearer {data}"


description = load("fuzzing")


@pytest.fixture(scope="module")
def one_of_everything(tmp_path_factory: pytest.TempPathFactory) -> None:
    start(tmp_path_factory.mktemp("home"))


def start(home: Path) -> None:
    """Start with an application that has one of everything."""
    add_base_model(home, BASE_MODEL)
    current.app = build(home)
    current.app.state.chat = ChatGateway(NoEngines())
    with open_services(Settings(home=home), None, lambda *_: None) as services:
        seed(services)


def seed(services: Services) -> None:
    """A finished job with events, a checkpoint and a model, a file, upload, endpoint, sweep and run of an eval."""
    settings, ledger = services.settings, JobLedger(services.database)
    with services.database.writing() as session:
        job_id = store_job(session)
        session.flush()
        session.scalars(select(ApiKey)).one().hash = hashlib.sha256(KEY.encode()).hexdigest()
        row: dict[str, Any] = {"project_id": session.scalars(select(Project.id)).one(), "created_at": now()}
        (settings.files_dir / FILE).write_bytes(b"x")
        session.add_all(
            [
                File(id=FILE, filename="a", purpose="user_data", bytes=1, **row),
                Upload(
                    id=UPLOAD,
                    filename="a",
                    purpose="batch",
                    bytes=0,
                    status="pending",
                    expires_at=2**40,
                    **row,
                ),
                Endpoint(
                    id=ENDPOINT,
                    name="a",
                    url="https://127.0.0.1",
                    event_types=[],
                    secret=open_vault(settings.root).seal(new_secret()),
                    updated_at=1,
                    **row,
                ),
                Sweep(
                    id=SWEEP,
                    status="running",
                    request={"model": BASE_MODEL, "training_file": FILE},
                    spec={"beta": [0.1]},
                    points=[{"job": job_id, "values": {"beta": 0.1}}],
                    stopped={},
                    rung=0,
                    **row,
                ),
            ]
        )
    REAL["job_id"] = job_id
    REAL["run_id"] = store_run(services.database, 1)
    with services.database.writing() as session:
        item = session.scalars(select(EvalItem)).one()
        item.status = "pass"
        REAL["item_id"], REAL["eval_id"] = item.id, session.scalars(select(Eval.id)).one()
    data = {"step": 1, "train_loss": 0.5}
    ledger.add_event(job_id, level="info", message="a step", type="metrics", data=data)
    ledger.add_checkpoint(job_id, step=1, model_name=MODEL, metrics={"train_loss": 0.5}, path="p")
    ledger.add_model(
        job_id, name=MODEL, base_model=BASE_MODEL, kind="adapter", path=str(settings.models_dir / BASE_MODEL)
    )
    ledger.transition(job_id, "succeeded", only_from=("queued",), finished_at=1)


BASE = settings(deadline=None, suppress_health_check=list(HealthCheck))


def check(case: Any) -> None:
    if case.method != "DELETE":
        known = {name: REAL[name] for name in case.path_parameters or {} if name in REAL}
        case.path_parameters = {**(case.path_parameters or {}), **known}
    # A request may be in order and yet name a model or a file that is not there, or a checksum that is not it.
    excluded = [positive_data_acceptance]
    # HTTP lets anybody send any header, and an empty list leaves nothing in a form.
    if UNKNOWN_HEADER in case.headers or case.media_type == "multipart/form-data":
        excluded.append(negative_data_rejection)
    response = case.call()
    if response.status_code == 413:  # a refusal, which the check does not count as one
        excluded.append(negative_data_rejection)
    case.validate_response(response, excluded_checks=excluded)


@description.parametrize()
@settings(BASE, max_examples=10)
def test_the_description_is_true(case: Any, one_of_everything: None) -> None:
    check(case)
