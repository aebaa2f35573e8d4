"""The audit log through the official client: every action that it promises, whose it was, and no secret."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from alignkit_server.audit.repository import forget
from alignkit_server.clock import now
from alignkit_server.tables import Project
from tests.server.models.test_models import publish
from tests.server.shapes import conforms
from tests.server.support import Running, create_job, upload

PROJECTS = "/v1/organization/projects"
EVENT = "fine_tuning.job.succeeded"


@pytest.fixture
def admin_key(service: Running) -> str:
    return service.new_key("admins", "admin")


@pytest.fixture
def logs(service: Running, admin_key: str) -> Iterator[Any]:
    with service.client(admin_key) as client:
        yield client.admin.organization.audit_logs


@pytest.fixture
def http(service: Running, admin_key: str) -> Iterator[httpx.Client]:
    with service.http(admin_key) as http:
        yield http


def types(entries: Any) -> list[str]:
    return [entry.type for entry in entries]


def test_actions_on_projects_and_keys_are_recorded_with_who_asked(
    logs: Any, http: httpx.Client, project: str
) -> None:
    made = http.post(PROJECTS, json={"name": project}).json()["id"]
    http.post(f"{PROJECTS}/{made}", json={"limits": {"jobs_queued": 7}})
    key = http.post(f"{PROJECTS}/{made}/api_keys", json={"name": "a"}).json()
    http.post(f"{PROJECTS}/{made}/api_keys/{key['id']}", json={"scopes": ["read"]})
    new = http.post(f"{PROJECTS}/{made}/api_keys/{key['id']}/rotate").json()
    http.delete(f"{PROJECTS}/{made}/api_keys/{new['id']}")
    entries = logs.list(project_ids=[made]).data
    expected = ["project.created", "project.updated", "api_key.created", "api_key.updated"]
    expected += ["api_key.created", "api_key.updated", "api_key.deleted"]
    assert types(entries) == expected[::-1]
    for entry in entries:
        conforms(entry) if entry.type != "project.updated" else None
        assert (entry.project.id, entry.project.name) == (made, project)
        assert entry.actor.type == "api_key"
        assert entry.actor.api_key.id.startswith("key_")
        assert abs(entry.effective_at - now()) < 60
    assert entries[-1].project_created.data.name == project
    assert entries[-4].api_key_updated.changes_requested.scopes == ["read"]
    assert entries[0].api_key_deleted.id == new["id"]
    text = http.get("/v1/organization/audit_logs", params={"project_ids[]": made}).text
    assert key["value"] not in text
    assert new["value"] not in text


def test_deletions_permissions_and_webhooks_are_recorded(
    service: Running, logs: Any, client: OpenAI, project: str, key: str
) -> None:
    client.files.delete(upload(client))
    name = publish(service, create_job(client).id, f"ft:audited:{project}")
    with service.client(service.new_key(f"{project}-friend")) as friend, service.http(key) as http:
        assert friend
        with service.services.database.reading() as session:
            grantee = session.query(Project).where(Project.name == f"{project}-friend").one().id
        path = f"/v1/fine_tuning/checkpoints/{name}/permissions"
        given = http.post(path, json={"project_ids": [grantee]}).json()["data"][0]["id"]
        http.delete(f"{path}/{given}")
    client.models.delete(name)
    hook = client.webhooks.create(event_types=[EVENT], name="a", url="https://example.com")
    client.webhooks.update(hook.id, name="b")
    client.webhooks.rotate_secret(hook.id)
    client.webhooks.delete(hook.id)
    found = [entry for entry in logs.list(limit=100) if entry.project.name == project]
    assert types(found)[::-1] == [
        "file.deleted",
        "checkpoint.permission.created",
        "checkpoint.permission.deleted",
        "model.deleted",
        "webhook_endpoint.created",
        "webhook_endpoint.updated",
        "webhook_endpoint.secret_rotated",
        "webhook_endpoint.deleted",
    ]
    assert found[-2].checkpoint_permission_created.data.fine_tuned_model_checkpoint == name
    assert hook.signing_secret not in str(found)


def test_what_is_refused_is_not_recorded(logs: Any, http: httpx.Client, project: str) -> None:
    before = types(logs.list(limit=1))
    assert http.post(PROJECTS, json={"name": "admins"}).status_code == 409
    assert http.delete(f"{PROJECTS}/proj_none/api_keys/key_none").status_code == 404
    assert types(logs.list(limit=1)) == before


def test_it_is_filtered_and_paged_both_ways(logs: Any, http: httpx.Client, project: str) -> None:
    made = http.post(PROJECTS, json={"name": project}).json()["id"]
    keys = [http.post(f"{PROJECTS}/{made}/api_keys", json={"name": "a"}).json()["id"] for _ in range(3)]
    mine = {"project_ids": [made]}
    assert types(logs.list(**mine, event_types=["project.created"])) == ["project.created"]
    assert types(logs.list(**mine, resource_ids=[keys[1]])) == ["api_key.created"]
    assert logs.list(**mine, actor_ids=["key_other"]).data == []
    assert logs.list(**mine, actor_emails=["a@example.com"]).data == []
    assert len(logs.list(**mine, effective_at={"gte": now() - 60, "lt": now() + 60}).data) == 4
    assert logs.list(**mine, effective_at={"gt": now() + 60}).data == []
    every = [entry.id for entry in logs.list(**mine, limit=3)]
    assert len(every) == len(set(every)) == 4
    back = logs.list(**mine, before=every[3], limit=2)
    assert [entry.id for entry in back.data] == every[1:3]
    with pytest.raises(openai.BadRequestError, match="found both"):
        logs.list(after=every[0], before=every[1])
    with pytest.raises(openai.NotFoundError, match="audit log"):
        logs.list(after="audit_log-none")


def test_only_an_admin_reads_it(service: Running, client: OpenAI) -> None:
    with pytest.raises(openai.PermissionDeniedError):
        client.admin.organization.audit_logs.list(extra_headers={"authorization": f"Bearer {client.api_key}"})
    assert service


def test_old_entries_go(service: Running, logs: Any, http: httpx.Client, project: str) -> None:
    made = http.post(PROJECTS, json={"name": project}).json()["id"]
    forget(service.services.database, now() - 3600)
    assert logs.list(project_ids=[made]).data
    forget(service.services.database, now() + 1)
    assert logs.list(project_ids=[made]).data == []
