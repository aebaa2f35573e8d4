"""/v1/models: base models for all, fine-tuned ones for their project."""

from typing import Any

import openai
import pytest
from openai import OpenAI

from alignkit_server.catalog.names import model_name
from alignkit_server.errors import ApiError
from tests.server.support import BASE_MODEL, Running, add_base_model, create_job


def publish(service: Running, job_id: str, name: str, *, status: str = "succeeded") -> str:
    service.ledger.add_model(job_id, name=name, base_model=BASE_MODEL, kind="adapter", path="p")
    service.ledger.transition(job_id, status, only_from=("queued", "running"))
    return name


def test_names() -> None:
    job_id = "ftjob-AbCd1234EfGh5678IjKl9012"
    assert model_name("base", "mine", "demo", job_id) == "ft:base:mine:demo:AbCd1234"
    assert model_name("base", "mine", "my first", job_id) == "ft:base:mine:my-first:AbCd1234"
    assert model_name("base", "mine", None, job_id) == "ft:base:mine::AbCd1234"
    assert model_name("base", "mine", "demo", job_id, 40) == "ft:base:mine:demo:AbCd1234:ckpt-step-40"
    assert (
        model_name("base", "mine", "demo", job_id, "amount-0.25") == "ft:base:mine:demo:AbCd1234:amount-0.25"
    )


def test_base_models_are_those_on_disk(service: Running, client: OpenAI, key: str) -> None:
    base = client.models.retrieve(BASE_MODEL)
    assert (base.id, base.object, base.owned_by) == (BASE_MODEL, "model", "alignkit")
    config = service.settings.models_dir / BASE_MODEL / "config.json"
    assert base.created == int(config.stat().st_mtime)
    assert base.to_dict()["kind"] == "base"
    add_base_model(service.settings.root, ".half-imported")
    (service.settings.models_dir / "no-model").mkdir(exist_ok=True)
    assert [model.id for model in client.models.list()] == [BASE_MODEL]
    for name in (".half-imported", "no-model", "a/b"):
        with pytest.raises(openai.NotFoundError, match=name):
            client.models.retrieve(name)
    with service.http(key) as http:
        for path in ("%2e%2e", f"%2e%2e/models/{BASE_MODEL}", f"{BASE_MODEL}/"):
            assert http.get(f"/v1/models/{path}").status_code == 404


def test_a_fine_tuned_model_is_found_and_deleted(service: Running, client: OpenAI, project: str) -> None:
    job = create_job(client, suffix="demo")
    name = publish(service, job.id, model_name(BASE_MODEL, project, "demo", job.id))
    model = client.models.retrieve(name)
    assert (model.id, model.owned_by) == (name, project)
    assert model.to_dict()["parent"] == BASE_MODEL
    assert [found.id for found in client.models.list()] == [BASE_MODEL, name]
    deleted = client.models.delete(name)
    assert (deleted.id, deleted.object, deleted.deleted) == (name, "model", True)
    assert service.unpublished[-1] == (name, BASE_MODEL)
    assert [found.id for found in client.models.list()] == [BASE_MODEL]
    for call in (client.models.retrieve, client.models.delete):
        with pytest.raises(openai.NotFoundError) as unknown:
            call(name)
        assert unknown.value.code == "model_not_found"
        assert "GET /v1/models" in unknown.value.message


@pytest.mark.parametrize("status", ["queued", "running", "failed", "cancelled"])
def test_a_model_is_nobodys_before_its_job_has_succeeded(
    service: Running, client: OpenAI, status: str
) -> None:
    job = create_job(client)
    name = publish(service, job.id, f"ft:early:{job.id}", status=status)
    assert [found.id for found in client.models.list()] == [BASE_MODEL]
    for call in (client.models.retrieve, client.models.delete):
        with pytest.raises(openai.NotFoundError, match=f"its job {job.id} is {status}") as unready:
            call(name)
        assert unready.value.code == "model_not_ready"


def test_a_base_model_cannot_be_deleted(client: OpenAI) -> None:
    with pytest.raises(openai.PermissionDeniedError, match="base model"):
        client.models.delete(BASE_MODEL)
    assert client.models.retrieve(BASE_MODEL)


def test_the_catalog_resolves_what_can_answer(service: Running, client: OpenAI) -> None:
    job = create_job(client)
    name = publish(service, job.id, f"ft:resolved:{job.id}")
    owner = service.ledger.get(job.id).project_id
    resolved = service.services.catalog.resolve(name, owner)
    assert (resolved.name, resolved.base_model, resolved.kind) == (name, BASE_MODEL, "adapter")
    base = service.services.catalog.resolve(BASE_MODEL, "proj_any")
    assert (base.base_model, base.kind) == (BASE_MODEL, "base")
    with pytest.raises(ApiError) as unknown:
        service.services.catalog.resolve(name, "proj_other")
    assert unknown.value.status == 404


def test_a_model_that_cannot_be_taken_down_is_gone_all_the_same(
    service: Running, client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: str) -> None:
        raise RuntimeError("the engine is away")

    monkeypatch.setattr(service.services, "unpublisher", fail)
    name = publish(service, create_job(client).id, "ft:stuck")
    assert client.models.delete(name).deleted
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(name)


def test_a_teacher_is_a_base_or_the_projects_own_model(
    service: Running, client: OpenAI, project: str, key: str
) -> None:
    def distil(teacher: str, by: OpenAI = client) -> Any:
        options = {"type": "sinkd", "sinkd": {"hyperparameters": {"teacher": teacher}}}
        return create_job(by, method=options)

    def recipe(job_id: str) -> Any:
        return service.ledger.get(job_id).recipe["method"]["teacher"]

    base_path = str(service.settings.models_dir / BASE_MODEL)
    assert recipe(distil(BASE_MODEL).id) == {"path": base_path, "adapter": None, "dtype": None}
    job = create_job(client, suffix="demo")
    name = publish(service, job.id, model_name(BASE_MODEL, project, "demo", job.id))
    assert recipe(distil(name).id) == {"path": base_path, "adapter": "p", "dtype": None}
    for teacher, by in (("gpt-99", client), (name, service.client(service.new_key("another")))):
        with pytest.raises(openai.BadRequestError) as refused:
            distil(teacher, by)
        assert refused.value.param == "method.sinkd.hyperparameters.teacher"
        assert teacher in refused.value.message
