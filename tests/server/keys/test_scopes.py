"""Every route with every scope, from the application's own description: a new route has to be entered here."""

import pytest
from fastapi import FastAPI

from alignkit_server.app import ROUTERS, create_app
from alignkit_server.chat.routes import router as chat
from alignkit_server.keys.scopes import SCOPES, also_needed, scopes_for
from alignkit_server.settings import Settings
from tests.server.support import Running

READ = {"read"}
TRAIN = {"train"}
EITHER = {"read", "inference"}
BOTH = {"read and train"}
ADMIN = {"admin"}
NEEDED = {
    ("GET", "/metrics"): {"metrics", "admin"},
    ("POST", "/v1/chat/completions"): {"inference"},
    ("POST", "/v1/completions"): {"inference"},
    ("POST", "/v1/responses"): {"inference"},
    ("GET", "/v1/evals"): READ,
    ("POST", "/v1/evals"): TRAIN,
    ("GET", "/v1/evals/{eval_id}"): READ,
    ("POST", "/v1/evals/{eval_id}"): TRAIN,
    ("DELETE", "/v1/evals/{eval_id}"): TRAIN,
    ("GET", "/v1/evals/{eval_id}/runs"): READ,
    ("POST", "/v1/evals/{eval_id}/runs"): {"inference and train"},
    ("GET", "/v1/evals/{eval_id}/runs/{run_id}"): READ,
    ("DELETE", "/v1/evals/{eval_id}/runs/{run_id}"): TRAIN,
    ("POST", "/v1/evals/{eval_id}/runs/{run_id}/cancel"): TRAIN,
    ("GET", "/v1/evals/{eval_id}/runs/{run_id}/output_items"): READ,
    ("GET", "/v1/evals/{eval_id}/runs/{run_id}/output_items/{item_id}"): READ,
    ("GET", "/v1/files"): READ,
    ("POST", "/v1/files"): TRAIN,
    ("DELETE", "/v1/files/{file_id}"): TRAIN,
    ("GET", "/v1/files/{file_id}"): READ,
    ("GET", "/v1/files/{file_id}/content"): READ,
    ("POST", "/v1/files/{file_id}/content"): READ,
    ("GET", "/v1/fine_tuning/checkpoints/{checkpoint}/permissions"): READ,
    ("POST", "/v1/fine_tuning/checkpoints/{checkpoint}/permissions"): BOTH,
    ("DELETE", "/v1/fine_tuning/checkpoints/{checkpoint}/permissions/{permission_id}"): BOTH,
    ("GET", "/v1/fine_tuning/jobs"): READ,
    ("POST", "/v1/fine_tuning/jobs"): TRAIN,
    ("POST", "/v1/fine_tuning/jobs/estimate"): TRAIN,
    ("GET", "/v1/fine_tuning/jobs/{job_id}"): READ,
    ("POST", "/v1/fine_tuning/jobs/{job_id}/cancel"): TRAIN,
    ("GET", "/v1/fine_tuning/jobs/{job_id}/checkpoints"): READ,
    ("GET", "/v1/fine_tuning/jobs/{job_id}/events"): READ,
    ("GET", "/v1/fine_tuning/jobs/{job_id}/logs"): READ,
    ("GET", "/v1/fine_tuning/jobs/{job_id}/metrics"): READ,
    ("POST", "/v1/fine_tuning/jobs/{job_id}/pause"): TRAIN,
    ("POST", "/v1/fine_tuning/jobs/{job_id}/prune"): TRAIN,
    ("GET", "/v1/fine_tuning/jobs/{job_id}/recipe"): READ,
    ("GET", "/v1/fine_tuning/jobs/{job_id}/report"): READ,
    ("POST", "/v1/fine_tuning/jobs/{job_id}/resume"): TRAIN,
    ("GET", "/v1/fine_tuning/methods"): READ,
    ("POST", "/v1/fine_tuning/preview"): READ,
    ("GET", "/v1/key"): set(SCOPES),
    ("GET", "/v1/models"): EITHER,
    ("DELETE", "/v1/models/{model}"): TRAIN,
    ("GET", "/v1/models/{model}"): EITHER,
    ("GET", "/v1/models/{model}/archive"): READ,
    ("POST", "/v1/models/{model}/archive"): READ,
    ("GET", "/v1/organization/audit_logs"): ADMIN,
    ("GET", "/v1/organization/engines"): ADMIN,
    ("GET", "/v1/organization/projects"): ADMIN,
    ("POST", "/v1/organization/projects"): ADMIN,
    ("GET", "/v1/organization/projects/{project_id}"): ADMIN,
    ("POST", "/v1/organization/projects/{project_id}"): ADMIN,
    ("GET", "/v1/organization/projects/{project_id}/api_keys"): ADMIN,
    ("POST", "/v1/organization/projects/{project_id}/api_keys"): ADMIN,
    ("DELETE", "/v1/organization/projects/{project_id}/api_keys/{key_id}"): ADMIN,
    ("GET", "/v1/organization/projects/{project_id}/api_keys/{key_id}"): ADMIN,
    ("POST", "/v1/organization/projects/{project_id}/api_keys/{key_id}"): ADMIN,
    ("POST", "/v1/organization/projects/{project_id}/api_keys/{key_id}/rotate"): ADMIN,
    ("GET", "/v1/fine_tuning/sweeps"): READ,
    ("POST", "/v1/fine_tuning/sweeps"): TRAIN,
    ("GET", "/v1/fine_tuning/sweeps/{sweep_id}"): READ,
    ("GET", "/v1/fine_tuning/sweeps/{sweep_id}/report"): READ,
    ("POST", "/v1/fine_tuning/sweeps/{sweep_id}/cancel"): TRAIN,
    ("POST", "/v1/uploads"): TRAIN,
    ("POST", "/v1/uploads/{upload_id}/cancel"): TRAIN,
    ("POST", "/v1/uploads/{upload_id}/complete"): TRAIN,
    ("POST", "/v1/uploads/{upload_id}/parts"): TRAIN,
    ("GET", "/v1/webhook_endpoints"): READ,
    ("POST", "/v1/webhook_endpoints"): BOTH,
    ("DELETE", "/v1/webhook_endpoints/{endpoint_id}"): BOTH,
    ("GET", "/v1/webhook_endpoints/{endpoint_id}"): READ,
    ("POST", "/v1/webhook_endpoints/{endpoint_id}"): BOTH,
    ("POST", "/v1/webhook_endpoints/{endpoint_id}/rotate_secret"): BOTH,
    ("POST", "/v1/webhook_endpoints/{endpoint_id}/test"): BOTH,
    ("GET", "/v1/webhook_event_types"): READ,
}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return create_app(Settings(home=tmp_path_factory.mktemp("home")), routers=(*ROUTERS, chat))


def operations(app: FastAPI) -> set[tuple[str, str]]:
    paths = app.openapi()["paths"]
    found = {(method.upper(), path) for path, operations in paths.items() for method in operations}
    return {(method, path) for method, path in found if path not in {"/healthz", "/readyz"}}


def needed(method: str, path: str) -> set[str]:
    """The scopes that are each enough alone, or all that are needed together."""
    also = also_needed(method, path)
    return {" and ".join(sorted({scope, *also})) for scope in scopes_for(method, path)}


def test_every_route_needs_the_scopes_that_are_entered_here(app: FastAPI) -> None:
    assert {(method, path): needed(method, path) for method, path in operations(app)} == NEEDED


def test_no_route_opens_to_a_scope_that_is_not_entered(service: Running, app: FastAPI) -> None:
    """One scope at a time, over HTTP; what a key may do is not looked at, only what it may not."""
    for scope in SCOPES:
        with service.http(service.new_key("scopes", scope)) as http:
            for method, path in operations(app):
                if scope in NEEDED[method, path]:
                    continue
                answer = http.request(method, path.replace("{", "").replace("}", ""))
                assert answer.status_code in {403, 404}, (scope, method, path, answer.status_code)
                if "project_id" not in path:
                    assert answer.json()["error"]["code"] == "missing_scope", (scope, method, path)
