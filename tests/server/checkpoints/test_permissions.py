"""Permissions on checkpoints through the official client: what they open, and to whom."""

from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI

from alignkit_server.catalog.names import model_name
from alignkit_server.errors import ApiError
from tests.server.shapes import conforms
from tests.server.support import BASE_MODEL, Running, create_job


@pytest.fixture
def checkpoint(service: Running, client: OpenAI, project: str) -> str:
    """A checkpoint of the test's project."""
    job = create_job(client)
    name = model_name(BASE_MODEL, project, None, job.id, 10)
    service.ledger.add_model(job.id, name=name, base_model=BASE_MODEL, kind="adapter", path="p", step=10)
    service.ledger.transition(job.id, "succeeded", only_from=("queued",))
    return name


@pytest.fixture
def other(service: Running, project: str) -> Iterator[OpenAI]:
    """Another project's client."""
    with service.client(service.new_key(f"{project}-other")) as client:
        yield client


def project_id(service: Running, client: OpenAI) -> str:
    return service.ledger.get(create_job(client).id).project_id


def test_a_permission_opens_a_model_and_its_end_closes_it(
    service: Running, client: OpenAI, other: OpenAI, checkpoint: str, project: str
) -> None:
    grantee = project_id(service, other)
    catalog = service.services.catalog

    def unknown() -> None:
        with pytest.raises(openai.NotFoundError):
            other.models.retrieve(checkpoint)
        with pytest.raises(ApiError):
            catalog.resolve(checkpoint, grantee)
        assert checkpoint not in {model.id for model in other.models.list()}

    unknown()
    granted = client.fine_tuning.checkpoints.permissions.create(checkpoint, project_ids=[grantee])
    permission = granted.data[0]
    conforms(permission)
    assert permission.project_id == grantee
    assert other.models.retrieve(checkpoint).owned_by == project
    assert checkpoint in {model.id for model in other.models.list()}
    assert catalog.resolve(checkpoint, grantee).base_model == BASE_MODEL
    with pytest.raises(openai.PermissionDeniedError, match=project):
        other.models.delete(checkpoint)
    deleted = client.fine_tuning.checkpoints.permissions.delete(
        permission.id, fine_tuned_model_checkpoint=checkpoint
    )
    conforms(deleted)
    assert deleted.deleted
    unknown()


def test_permissions_are_listed_in_pages(service: Running, client: OpenAI, checkpoint: str) -> None:
    permissions = client.fine_tuning.checkpoints.permissions
    grantees = []
    for number in range(3):
        with service.client(service.new_key(f"grantee-{number}")) as grantee:
            grantees.append(project_id(service, grantee))
    created = permissions.create(checkpoint, project_ids=grantees).data
    again = permissions.create(checkpoint, project_ids=grantees[:1]).data
    assert [again[0].id] == [created[0].id]
    ids = [permission.id for permission in created]
    assert [found.id for found in permissions.list(checkpoint, limit=2)] == ids[::-1]
    assert [found.id for found in permissions.list(checkpoint, limit=1, order="ascending")] == ids
    assert [found.id for found in permissions.list(checkpoint, project_id=grantees[1])] == [ids[1]]
    with pytest.warns(DeprecationWarning, match="paginated"):
        page = permissions.retrieve(checkpoint, limit=2)
    conforms(page)
    assert (page.first_id, page.last_id, page.has_more) == (ids[2], ids[1], True)


def test_what_cannot_be_granted(service: Running, client: OpenAI, other: OpenAI, checkpoint: str) -> None:
    permissions = client.fine_tuning.checkpoints.permissions
    with pytest.raises(openai.NotFoundError, match="No such project: 'proj_unknown'"):
        permissions.create(checkpoint, project_ids=["proj_unknown"])
    with pytest.raises(openai.BadRequestError, match="owns the checkpoint"):
        permissions.create(checkpoint, project_ids=[project_id(service, client)])
    with pytest.raises(openai.BadRequestError) as none:
        permissions.create(checkpoint, project_ids=[])
    assert none.value.param == "project_ids"
    with pytest.raises(openai.NotFoundError):
        permissions.create("ft:none", project_ids=["proj_unknown"])
    with pytest.raises(openai.NotFoundError):
        permissions.delete("cp_unknown", fine_tuned_model_checkpoint=checkpoint)


def test_a_grantee_cannot_pass_a_model_on(
    service: Running, client: OpenAI, other: OpenAI, checkpoint: str
) -> None:
    grantee = project_id(service, other)
    client.fine_tuning.checkpoints.permissions.create(checkpoint, project_ids=[grantee])
    for call in (
        lambda: other.fine_tuning.checkpoints.permissions.create(checkpoint, project_ids=["proj_x"]),
        lambda: other.fine_tuning.checkpoints.permissions.list(checkpoint),
    ):
        with pytest.raises(openai.NotFoundError):
            call()


def test_a_deleted_model_takes_its_permissions_along(
    service: Running, client: OpenAI, other: OpenAI, checkpoint: str
) -> None:
    client.fine_tuning.checkpoints.permissions.create(checkpoint, project_ids=[project_id(service, other)])
    assert client.models.delete(checkpoint).deleted
    with pytest.raises(openai.NotFoundError):
        other.models.retrieve(checkpoint)
