"""Every route of the whole service, walked with another project's ids: each answers 404.

The walk reads the application's own description. A new route is in it by itself; a new id in a path, a query or a
body has to be entered below, and until it is, the test fails.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from sqlalchemy import select

from alignkit_server.main import build_app
from alignkit_server.settings import Settings
from alignkit_server.tables import EvalItem
from tests.server.support import BASE_MODEL, Running, create_job, upload
from tests.server.support import method as method_of_job

PLAIN = {
    "limit", "order", "purpose", "stream", "metadata", "model", "method", "suffix", "seed", "integrations",
    "hyperparameters", "name", "scopes", "expires_in_seconds", "grace_seconds", "limits", "file", "expires_after",
    "idempotency-key", "names", "max_points", "rows", "offset", "bytes", "filename", "mime_type", "md5",
    "project_id", "project_ids", "url", "event_types", "event_type", "part_ids",
    "keep_old_secret_active_for_24_hours", "type", "tail", "form", "quantize", "order_by", "status", "sweep",
    "data_source_config", "testing_criteria", "data_source", "serving",
}  # fmt: skip
"""Parameters of queries and bodies that name nothing of a project's. `model` is a base model where jobs are created,
and the chat routes are walked by themselves. `project_id` and `project_ids` name who was or is
given a permission, and `part_ids` parts of the upload in the path. Files and models inside of `testing_criteria` and
`data_source` have a test of their own."""
RUN = {
    "data_source": {
        "type": "jsonl",
        "source": {"type": "file_content", "content": [{"item": {"x": "y"}}]},
    }
}
BODIES: dict[str, dict[str, Any]] = {
    "POST /v1/uploads/{upload_id}/parts": {"files": {"data": b"x"}},
    "POST /v1/models/{model}/archive": {"json": {}},
    "POST /v1/uploads/{upload_id}/complete": {"json": {"part_ids": []}},
    "POST /v1/fine_tuning/checkpoints/{checkpoint}/permissions": {"json": {"project_ids": ["proj_x"]}},
    "POST /v1/webhook_endpoints/{endpoint_id}": {"json": {"name": "x"}},
    "POST /v1/webhook_endpoints/{endpoint_id}/test": {"json": {"event_type": "fine_tuning.job.failed"}},
    "POST /v1/evals/{eval_id}": {"json": {"name": "x"}},
    "POST /v1/evals/{eval_id}/runs": {"json": RUN},
    "POST /v1/organization/projects/{project_id}": {"json": {"limits": {}}},
    "POST /v1/organization/projects/{project_id}/api_keys": {"json": {"name": "x"}},
}
"""Bodies of routes that look at the body before they look for what the path names."""
CHAT: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": []},
    "/v1/completions": {"prompt": "x"},
    "/v1/responses": {"input": "x"},
}
"""Routes whose bodies are the engine's; the model is all that the service reads of them."""
FORMS = {"POST /v1/files", "POST /v1/uploads/{upload_id}/parts"}
"""Routes that take a form, which names nothing."""


EVAL: dict[str, Any] = {
    "data_source_config": {"type": "custom", "item_schema": {"type": "object"}},
    "testing_criteria": [
        {"type": "string_check", "name": "x", "input": "{{item.x}}", "reference": "y", "operation": "eq"}
    ],
}


def first_item(service: Running, run_id: str) -> str:
    """The first row of a run, graded."""
    with service.services.database.writing() as session:
        item = session.scalars(select(EvalItem).where(EvalItem.run_id == run_id)).first()
        assert item is not None
        item.status = "pass"
        return item.id


@pytest.fixture
def ids(service: Running, client: OpenAI, project: str) -> dict[str, list[str]]:
    """Parameter name -> an object of the project of `client` that could be passed for it."""
    file_id = upload(client)
    job = create_job(client, training_file=file_id)
    tuned = f"ft:x:y:z:{job.id}"
    service.ledger.add_model(job.id, name=tuned, base_model="x", kind="adapter", path="p")
    service.ledger.transition(job.id, "succeeded", only_from=("queued",))
    event = client.fine_tuning.jobs.list_events(job.id).data[0]
    admin = service.client(service.new_key("admins", "admin")).admin.organization.projects
    project_id = next(found.id for found in admin.list(limit=100) if found.name == project)
    key_id = admin.api_keys.list(project_id).data[0].id
    uploaded = client.uploads.create(bytes=0, filename="x", mime_type="x", purpose="user_data")
    third = admin.create(name=f"{project}-third").id
    permission = client.fine_tuning.checkpoints.permissions.create(tuned, project_ids=[third]).data[0]
    endpoint = client.webhooks.create(
        name="x", url="https://example.com", event_types=["fine_tuning.job.failed"]
    )
    with service.http(client.api_key) as http:
        body = {
            "model": BASE_MODEL,
            "training_file": file_id,
            "method": method_of_job(),
            "sweep": {"beta": [0.1]},
        }
        sweep = http.post("/v1/fine_tuning/sweeps", json=body).json()["id"]
    eval_id = client.evals.create(**EVAL).id
    run = client.evals.runs.create(eval_id, **RUN)  # type: ignore[call-overload]
    item_id = first_item(service, run.id)
    return {
        "sweep_id": [sweep],
        "eval_id": [eval_id],
        "run_id": [run.id],
        "item_id": [item_id],
        "file_id": [file_id],
        "job_id": [job.id],
        "upload_id": [uploaded.id],
        "checkpoint": [tuned],
        "permission_id": [permission.id],
        "endpoint_id": [endpoint.id],
        "model": [tuned],
        "project_id": [project_id],
        "key_id": [key_id],
        "training_file": [file_id],
        "validation_file": [file_id],
        "after": [
            file_id,
            job.id,
            event.id,
            project_id,
            key_id,
            permission.id,
            endpoint.id,
            eval_id,
            run.id,
            item_id,
            sweep,
        ],
        "last-event-id": [event.id],
    }


@pytest.fixture
def other(service: Running, project: str) -> Iterator[httpx.Client]:
    """A client of another project, which has a file and a job of its own."""
    key = service.new_key(f"{project}-other")
    with service.http(key) as http:
        yield http


def client_of(service: Running, http: httpx.Client) -> OpenAI:
    """The official client with the key of `http`."""
    return service.client(http.headers["authorization"].removeprefix("Bearer "))


def operations(tmp_path: Path) -> list[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """(method, path, operation, schemas) of everything that the real application serves behind the guard."""
    schema = build_app(Settings(home=tmp_path)).openapi()
    return [
        (method.upper(), path, operation, schema["components"]["schemas"])
        for path, found in schema["paths"].items()
        if path.startswith("/v1/")
        for method, operation in found.items()
    ]


def assert_not_found(answer: httpx.Response) -> None:
    """404, and because the thing is not there: not because the route is not."""
    assert answer.status_code == 404, (answer.request.method, answer.request.url, answer.text)
    assert "Unknown request URL" not in answer.text


def test_no_path_leads_to_another_project(
    ids: dict[str, list[str]], other: httpx.Client, client: OpenAI, tmp_path: Path
) -> None:
    walked = 0
    for method, path, operation, _ in operations(tmp_path):
        names = [part["name"] for part in operation.get("parameters", ()) if part["in"] == "path"]
        for values in itertools.product(*(ids[name] for name in names)):
            if names:
                url = path.format(**dict(zip(names, values, strict=True)))
                assert_not_found(other.request(method, url, **BODIES.get(f"{method} {path}", {})))
                walked += 1
    assert walked >= 16
    assert client.files.retrieve(ids["file_id"][0])
    assert client.models.retrieve(ids["model"][0])
    assert client.fine_tuning.jobs.retrieve(ids["job_id"][0]).status == "succeeded"


def test_no_query_and_no_header_leads_to_another_project(
    service: Running, ids: dict[str, list[str]], other: httpx.Client, tmp_path: Path
) -> None:
    own_client = client_of(service, other)
    file_id = upload(own_client)
    job = create_job(own_client, training_file=file_id)
    own = {"file_id": file_id, "job_id": job.id, "checkpoint": f"ft:x:y:z:{job.id}"}
    own["eval_id"] = own_client.evals.create(**EVAL).id
    own["run_id"] = own_client.evals.runs.create(own["eval_id"], **RUN).id  # type: ignore[call-overload]
    service.ledger.add_model(job.id, name=own["checkpoint"], base_model="x", kind="adapter", path="p")
    service.ledger.transition(job.id, "succeeded", only_from=("queued",))
    walked = 0
    for method, path, operation, _ in operations(tmp_path):
        given = [part for part in operation.get("parameters", ()) if part["in"] != "path"]
        for part in given:
            if part["name"] in PLAIN:
                continue
            if path.startswith("/v1/organization"):
                continue  # another scope: see test_projects
            for value in ids[part["name"]]:
                query = {part["name"]: value} if part["in"] == "query" else {"stream": "true"}
                headers = {part["name"]: value} if part["in"] == "header" else {}
                answer = other.request(method, path.format(**own), params=query, headers=headers)
                if part["in"] == "header":
                    assert answer.status_code == 400, answer.text
                else:
                    assert_not_found(answer)
                walked += 1
    assert walked >= 17


def test_no_body_leads_to_another_project(
    service: Running, ids: dict[str, list[str]], other: httpx.Client, tmp_path: Path
) -> None:
    own_file = upload(client_of(service, other))
    walked = 0
    for method, path, operation, schemas in operations(tmp_path):
        content = operation.get("requestBody", {}).get("content", {})
        if not content or f"{method} {path}" in FORMS or path in CHAT:
            continue
        reference = re.search(r"schemas/(\w+)", str(content["application/json"]["schema"]))
        assert reference, (method, path)
        for name in schemas[reference[1]]["properties"]:
            if name in PLAIN:
                continue
            body = {"model": BASE_MODEL, "method": method_of_job(), "training_file": own_file}
            if path == "/v1/fine_tuning/sweeps":
                body["sweep"] = {"beta": [0.1]}
            assert_not_found(other.request(method, path, json=body | {name: ids[name][0]}))
            walked += 1
    assert walked >= 2
    for path, said in CHAT.items():
        assert_not_found(other.post(path, json={"model": ids["model"][0]} | said))


def test_no_eval_reaches_another_projects_files_and_models(
    ids: dict[str, list[str]], other: httpx.Client
) -> None:
    (model,), (file_id,) = ids["model"], ids["file_id"]
    judge = {"type": "label_model", "name": "x", "model": model, "labels": ["a"], "passing_labels": ["a"]}
    judge["input"] = [{"role": "user", "content": "x"}]
    assert_not_found(other.post("/v1/evals", json=EVAL | {"testing_criteria": [judge]}))
    path = f"/v1/evals/{other.post('/v1/evals', json=EVAL).json()['id']}/runs"
    by_file = {"type": "jsonl", "source": {"type": "file_id", "id": file_id}}
    assert_not_found(other.post(path, json={"data_source": by_file}))
    messages = {"type": "template", "template": [{"role": "user", "content": "x"}]}
    sampled = RUN["data_source"] | {"type": "completions", "model": model, "input_messages": messages}
    assert_not_found(other.post(path, json={"data_source": sampled}))


def test_no_list_holds_what_is_another_project_s(ids: dict[str, list[str]], other: httpx.Client) -> None:
    assert other.get("/v1/files").json()["data"] == []
    assert other.get("/v1/fine_tuning/jobs").json()["data"] == []
    assert other.get("/v1/evals").json()["data"] == []
    assert ids["model"][0] not in other.get("/v1/models").text
