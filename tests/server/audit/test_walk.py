"""Every route that changes something, from the application's own description: it leaves an entry, or says why not."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from openai import OpenAI
from sqlalchemy import select

from alignkit_server.app import ROUTERS, create_app
from alignkit_server.chat.routes import router as chat
from alignkit_server.settings import Settings
from alignkit_server.tables import AuditLog, Project
from tests.server.keys.test_scopes import operations
from tests.server.models.test_models import publish
from tests.server.support import Running, create_job, upload

PROJECTS = "/v1/organization/projects"
KEYS = f"{PROJECTS}/{{project_id}}/api_keys"
PERMISSIONS = "/v1/fine_tuning/checkpoints/{checkpoint}/permissions"
HOOKS = "/v1/webhook_endpoints"
Asked = tuple[dict[str, str], dict[str, Any] | None]
"""What fills the path, and the body."""


@dataclass(frozen=True)
class World:
    """A service, and two keys: an admin's, and one of a project."""

    service: Running
    admin: httpx.Client
    mine: httpx.Client
    client: OpenAI
    project: str

    def project_id(self, name: str) -> str:
        with self.service.services.database.reading() as session:
            return session.scalars(select(Project.id).where(Project.name == name)).one()

    def made(self, path: str, **body: Any) -> str:
        """The id of what a POST makes."""
        http = self.admin if path.startswith(PROJECTS) else self.mine
        found = http.post(path, json=body)
        assert found.status_code == 200, found.text
        return str(found.json()["id"])

    def key(self) -> dict[str, str]:
        mine = self.project_id(self.project)
        return {"project_id": mine, "key_id": self.made(f"{PROJECTS}/{mine}/api_keys", name="a")}

    def model(self) -> str:
        return publish(
            self.service, create_job(self.client).id, f"ft:audited-{next(_numbers)}:{self.project}"
        )

    def eval(self) -> str:
        config = {"type": "custom", "item_schema": {"type": "object"}}
        check = {"type": "string_check", "name": "n", "input": "a", "reference": "a", "operation": "eq"}
        return self.made("/v1/evals", data_source_config=config, testing_criteria=[check])

    def run(self) -> dict[str, str]:
        eval_id, source = self.eval(), {"type": "file_content", "content": [{"item": {}}]}
        path = f"/v1/evals/{eval_id}/runs"
        return {
            "eval_id": eval_id,
            "run_id": self.made(path, data_source={"type": "jsonl", "source": source}),
        }

    def finished(self) -> str:
        job_id: str = create_job(self.client).id
        self.service.ledger.transition(job_id, "succeeded", only_from=("queued",), finished_at=1)
        return job_id

    def parts(self) -> str:
        return self.made("/v1/uploads", bytes=9, filename="a", mime_type="a/b", purpose="user_data")

    def hook(self) -> dict[str, str]:
        event = "fine_tuning.job.succeeded"
        return {"endpoint_id": self.made(HOOKS, event_types=[event], name="a", url="https://example.com")}

    def permission(self) -> dict[str, str]:
        model = self.model()
        path = PERMISSIONS.format(checkpoint=model)
        answer = self.mine.post(path, json={"project_ids": [self.project_id(f"{self.project}-friend")]})
        return {"checkpoint": model, "permission_id": answer.json()["data"][0]["id"]}


_numbers = itertools.count()
RECORDED: dict[tuple[str, str], tuple[set[str], Callable[[World], Asked]]] = {
    ("POST", PROJECTS): ({"project.created"}, lambda w: ({}, {"name": f"{w.project}-new"})),
    ("POST", f"{PROJECTS}/{{project_id}}"): (
        {"project.updated"},
        lambda w: ({"project_id": w.project_id(w.project)}, {"limits": {"jobs_queued": 7}}),
    ),
    ("POST", KEYS): ({"api_key.created"}, lambda w: ({"project_id": w.project_id(w.project)}, {"name": "a"})),
    ("POST", f"{KEYS}/{{key_id}}"): ({"api_key.updated"}, lambda w: (w.key(), {"scopes": ["read"]})),
    ("POST", f"{KEYS}/{{key_id}}/rotate"): (
        {"api_key.created", "api_key.updated"},
        lambda w: (w.key(), None),
    ),
    ("DELETE", f"{KEYS}/{{key_id}}"): ({"api_key.deleted"}, lambda w: (w.key(), None)),
    ("POST", PERMISSIONS): (
        {"checkpoint.permission.created"},
        lambda w: ({"checkpoint": w.model()}, {"project_ids": [w.project_id(f"{w.project}-friend")]}),
    ),
    ("DELETE", f"{PERMISSIONS}/{{permission_id}}"): (
        {"checkpoint.permission.deleted"},
        lambda w: (w.permission(), None),
    ),
    ("DELETE", "/v1/files/{file_id}"): ({"file.deleted"}, lambda w: ({"file_id": upload(w.client)}, None)),
    ("DELETE", "/v1/models/{model}"): ({"model.deleted"}, lambda w: ({"model": w.model()}, None)),
    ("DELETE", "/v1/evals/{eval_id}"): ({"eval.deleted"}, lambda w: ({"eval_id": w.eval()}, None)),
    ("DELETE", "/v1/evals/{eval_id}/runs/{run_id}"): ({"eval.run.deleted"}, lambda w: (w.run(), None)),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/prune"): (
        {"job.pruned"},
        lambda w: ({"job_id": w.finished()}, None),
    ),
    ("POST", "/v1/uploads/{upload_id}/cancel"): (
        {"upload.cancelled"},
        lambda w: ({"upload_id": w.parts()}, None),
    ),
    ("POST", HOOKS): (
        {"webhook_endpoint.created"},
        lambda _: (
            {},
            {"event_types": ["fine_tuning.job.failed"], "name": "a", "url": "https://example.com"},
        ),
    ),
    ("POST", f"{HOOKS}/{{endpoint_id}}"): ({"webhook_endpoint.updated"}, lambda w: (w.hook(), {"name": "b"})),
    ("POST", f"{HOOKS}/{{endpoint_id}}/rotate_secret"): (
        {"webhook_endpoint.secret_rotated"},
        lambda w: (w.hook(), None),
    ),
    ("DELETE", f"{HOOKS}/{{endpoint_id}}"): ({"webhook_endpoint.deleted"}, lambda w: (w.hook(), None)),
}
"""Route -> the actions that it records, and how to ask for it."""
ADDS = "adds something of the project's own, which its list shows"
ANSWERS = "changes nothing"
STATUS = "changes the status of a job, a sweep or a run, which stays in its list"
NOT_RECORDED = {
    "/v1/chat/completions": ANSWERS,
    "/v1/completions": ANSWERS,
    "/v1/responses": ANSWERS,
    "/v1/evals": ADDS,
    "/v1/evals/{eval_id}": "changes a name and labels",
    "/v1/evals/{eval_id}/runs": ADDS,
    "/v1/evals/{eval_id}/runs/{run_id}/cancel": STATUS,
    "/v1/files": ADDS,
    "/v1/files/{file_id}/content": "makes a link of what the key may read anyway",
    "/v1/fine_tuning/jobs": ADDS,
    "/v1/fine_tuning/jobs/estimate": ANSWERS,
    "/v1/fine_tuning/jobs/{job_id}/cancel": STATUS,
    "/v1/fine_tuning/jobs/{job_id}/pause": STATUS,
    "/v1/fine_tuning/jobs/{job_id}/resume": STATUS,
    "/v1/fine_tuning/preview": ANSWERS,
    "/v1/fine_tuning/sweeps": ADDS,
    "/v1/fine_tuning/sweeps/{sweep_id}/cancel": STATUS,
    "/v1/models/{model}/archive": "makes a link of what the key may read anyway",
    "/v1/uploads": ADDS,
    "/v1/uploads/{upload_id}/complete": ADDS,
    "/v1/uploads/{upload_id}/parts": ADDS,
    "/v1/webhook_endpoints/{endpoint_id}/test": "sends a sample to an endpoint that is there",
}
"""POST routes without an entry -> the reason. A DELETE has none."""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return create_app(Settings(home=tmp_path_factory.mktemp("home")), routers=(*ROUTERS, chat))


def test_every_route_that_changes_something_is_entered_here(app: FastAPI) -> None:
    changing = {(method, path) for method, path in operations(app) if method != "GET"}
    assert changing == RECORDED.keys() | {("POST", path) for path in NOT_RECORDED}


@pytest.mark.parametrize("route", RECORDED, ids=" ".join)
def test_what_it_does_is_recorded(
    service: Running, client: OpenAI, project: str, key: str, route: tuple[str, str]
) -> None:
    method, path = route
    actions, ask = RECORDED[route]
    service.new_key(f"{project}-friend")
    with service.http(service.new_key("admins", "admin")) as admin, service.http(key) as mine:
        filled, body = ask(World(service, admin, mine, client, project))
        before = newest(service)
        http = admin if path.startswith(PROJECTS) else mine
        answer = http.request(method, path.format(**filled), json=body)
    assert answer.status_code == 200, answer.text
    entries = newest(service)[len(before) :]
    assert {entry.type for entry in entries} == actions
    known = {*filled.values(), answer.json().get("id"), *(one["id"] for one in answer.json().get("data", []))}
    assert {entry.resource_id for entry in entries} <= known
    assert all(entry.actor_key_id for entry in entries)


def newest(service: Running) -> list[AuditLog]:
    with service.services.database.reading() as session:
        return list(session.scalars(select(AuditLog).order_by(AuditLog.seq)).all())
