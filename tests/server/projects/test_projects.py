"""Projects and keys as an admin handles them: through the official client where it has the method."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from alignkit_server.tables import ApiKey
from tests.server.support import Running, create_job, upload


@pytest.fixture
def admin_key(service: Running) -> str:
    return service.new_key("admins", "admin")


@pytest.fixture
def admin(service: Running, admin_key: str) -> Iterator[Any]:
    """The official client's projects."""
    with service.client(admin_key) as client:
        yield client.admin.organization.projects


@pytest.fixture
def http(service: Running, admin_key: str) -> Iterator[httpx.Client]:
    with service.http(admin_key) as http:
        yield http


def make_key(http: httpx.Client, project_id: str, **fields: Any) -> dict[str, Any]:
    """A new key, with its value."""
    answer = http.post(f"/v1/organization/projects/{project_id}/api_keys", json={"name": "a key"} | fields)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def opens(service: Running, value: str) -> bool:
    """Whether the key gets past the guard."""
    with service.http(value) as http:
        return http.get("/v1/models").status_code != 401


def test_a_project_is_made_listed_and_found(admin: Any, project: str) -> None:
    made = admin.create(name=project)
    assert (made.object, made.name, made.status) == ("organization.project", project, "active")
    assert admin.retrieve(made.id) == made
    assert made in list(admin.list(limit=2))
    with pytest.raises(openai.ConflictError, match="already exists") as refused:
        admin.create(name=project)
    assert refused.value.code == "project_exists"
    with pytest.raises(openai.NotFoundError, match="No such project"):
        admin.retrieve("proj_unknown")
    for name in ("", "a b", "a/b", "x" * 33, "é"):
        with pytest.raises(openai.BadRequestError, match="name"):
            admin.create(name=name)


def test_projects_come_in_pages_without_gap_or_repetition(admin: Any, project: str) -> None:
    made = {admin.create(name=f"{project}-{n}").id for n in range(5)}
    listed = [found.id for found in admin.list(limit=2)]
    assert made <= set(listed)
    assert len(listed) == len(set(listed))


def test_a_key_is_shown_once_and_opens_its_project(
    service: Running, admin: Any, http: httpx.Client, project: str
) -> None:
    project_id = admin.create(name=project).id
    made = make_key(http, project_id, name="ci")
    assert made["redacted_value"] == f"sk-…{made['value'][-4:]}"
    key = admin.api_keys.retrieve(made["id"], project_id=project_id)
    assert (key.name, key.object, key.expires_at, key.last_used_at) == (
        "ci",
        "organization.project.api_key",
        None,
        None,
    )
    assert made["value"] not in admin.api_keys.list(project_id).model_dump_json()
    client = service.client(made["value"])
    file_id = upload(client)
    assert create_job(client, training_file=file_id).organization_id == project
    assert admin.api_keys.retrieve(made["id"], project_id=project_id).last_used_at
    with service.services.database.reading() as session:
        row = session.query(ApiKey).where(ApiKey.id == made["id"]).one()
        assert made["value"] not in str(vars(row))


def test_a_revoked_key_opens_nothing_from_then_on(
    service: Running, admin: Any, http: httpx.Client, project: str
) -> None:
    project_id = admin.create(name=project).id
    made = make_key(http, project_id)
    assert opens(service, made["value"])
    assert admin.api_keys.delete(made["id"], project_id=project_id).deleted
    assert not opens(service, made["value"])
    assert list(admin.api_keys.list(project_id)) == []
    with pytest.raises(openai.NotFoundError, match="No such API key"):
        admin.api_keys.retrieve(made["id"], project_id=project_id)


def test_a_key_expires(
    service: Running, admin: Any, http: httpx.Client, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    project_id = admin.create(name=project).id
    made = make_key(http, project_id, expires_in_seconds=60)
    assert made["expires_at"] == made["created_at"] + 60
    monkeypatch.setattr("alignkit_server.keys.service.now", lambda: made["expires_at"] - 1)
    assert opens(service, made["value"])
    monkeypatch.setattr("alignkit_server.keys.service.now", lambda: made["expires_at"])
    assert not opens(service, made["value"])


def test_rotation_replaces_a_key_at_once_or_after_a_while(
    service: Running, admin: Any, http: httpx.Client, project: str
) -> None:
    project_id = admin.create(name=project).id
    path = f"/v1/organization/projects/{project_id}/api_keys"
    old = make_key(http, project_id, name="ci", scopes=["read"])
    new = http.post(f"{path}/{old['id']}/rotate", json={"grace_seconds": 600}).json()
    assert (new["name"], new["scopes"], new["expires_at"]) == ("ci", ["read"], None)
    assert new["id"] != old["id"]
    assert opens(service, old["value"])
    assert opens(service, new["value"])
    last = http.post(f"{path}/{new['id']}/rotate").json()
    assert not opens(service, new["value"])
    assert opens(service, last["value"])
    again = http.post(f"{path}/{new['id']}/rotate")
    assert (again.status_code, again.json()["error"]["code"]) == (400, "key_expired")


def test_a_key_s_scopes_and_end_can_be_changed(admin: Any, http: httpx.Client, project: str) -> None:
    project_id = admin.create(name=project).id
    made = make_key(http, project_id)
    assert made["scopes"] == ["read", "train", "inference"]
    changed = admin.api_keys.update(
        made["id"], project_id=project_id, scopes=["inference"], expires_in_seconds=60
    )
    assert changed.scopes == ["inference"]
    assert changed.expires_at
    for scopes in ([], ["everything"], ["read"] * 6):
        with pytest.raises(openai.BadRequestError, match="scopes"):
            admin.api_keys.update(made["id"], project_id=project_id, scopes=scopes)


def test_a_key_is_found_under_its_own_project_only(admin: Any, http: httpx.Client, project: str) -> None:
    mine, other = (admin.create(name=f"{project}-{n}").id for n in range(2))
    made = make_key(http, mine)
    for call in (admin.api_keys.retrieve, admin.api_keys.delete):
        with pytest.raises(openai.NotFoundError, match="No such API key"):
            call(made["id"], project_id=other)
    with pytest.raises(openai.NotFoundError):
        list(admin.api_keys.list(other, after=made["id"]))
    assert admin.api_keys.retrieve(made["id"], project_id=mine)


MODELS, FILES = ("GET", "/v1/models"), ("GET", "/v1/files")
DELETE, CANCEL = ("DELETE", "/v1/files/x"), ("POST", "/v1/fine_tuning/jobs/x/cancel")
CHAT, PROJECTS = ("POST", "/v1/chat/completions"), ("GET", "/v1/organization/projects")


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        ("read", {MODELS, FILES}),
        ("train", {DELETE, CANCEL}),
        ("inference", {MODELS, CHAT}),
        ("admin", {PROJECTS}),
    ],
)
def test_a_scope_allows_its_requests_and_no_others(
    service: Running, project: str, scope: str, allowed: set[tuple[str, str]]
) -> None:
    with service.http(service.new_key(project, scope)) as http:
        for method, path in (MODELS, FILES, DELETE, CANCEL, CHAT, PROJECTS):
            answer = http.request(method, path, json={"model": "unknown"} if path == CHAT[1] else None)
            if (method, path) in allowed:
                assert answer.status_code in {200, 404}, (method, path, answer.text)
            else:
                assert answer.status_code == 403, (method, path)
                assert answer.json()["error"]["code"] == "missing_scope"
                assert f"found {scope}" in answer.json()["error"]["message"]


def test_a_key_that_is_no_admin_s_learns_nothing_of_projects(
    service: Running, admin: Any, client: OpenAI, project: str
) -> None:
    mine = next(found for found in admin.list(limit=100) if found.name == project).id
    other = admin.create(name=f"{project}-other").id
    projects = client.admin.organization.projects
    with pytest.raises(openai.PermissionDeniedError):
        projects.retrieve(mine)
    messages = set()
    for project_id in (other, "proj_unknown"):
        with pytest.raises(openai.NotFoundError) as refused:
            projects.retrieve(project_id)
        messages.add(refused.value.message.replace(project_id, "…"))
    assert len(messages) == 1


def test_limits_are_the_service_s_until_a_project_has_its_own(admin: Any, project: str) -> None:
    made = admin.create(name=project)
    assert made.limits["jobs_queued"] == 1000
    changed = admin.update(made.id, extra_body={"limits": {"jobs_queued": 5, "gpu_seconds": 60}})
    assert (changed.limits["jobs_queued"], changed.limits["gpu_seconds"]) == (5, 60)
    changed = admin.update(made.id, extra_body={"limits": {"jobs_queued": None}})
    assert (changed.limits["jobs_queued"], changed.limits["gpu_seconds"]) == (1000, 60)
    assert admin.retrieve(made.id) == changed
    for limits in ({"jobs_queued": -1}, {"colour": 1}, {"file_bytes": "1"}, {"file_bytes": 2**63}):
        with pytest.raises(openai.BadRequestError, match="limits"):
            admin.update(made.id, extra_body={"limits": limits})
    with pytest.raises(openai.BadRequestError, match="Unknown parameter: 'name'"):
        admin.update(made.id, name="other", extra_body={"limits": {}})


def test_usage_is_told(admin: Any, client: OpenAI, project: str) -> None:
    file = client.files.create(file=("a", b"x" * 10), purpose="user_data")
    assert file.bytes == 10
    found = next(found for found in admin.list(limit=100) if found.name == project)
    assert found.usage == {
        "jobs_queued": 0,
        "jobs_running": 0,
        "file_bytes": 10,
        "disk_bytes": 10,
        "gpu_seconds": 0,
    }
