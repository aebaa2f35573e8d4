"""/v1/fine_tuning/jobs through the official client: what a job is, and its way to the runner."""

import time
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from tests.server.shapes import conforms
from tests.server.support import BASE_MODEL, Running, create_job, method, pairs, upload

pytestmark = pytest.mark.usefixtures("without_amx")


def test_a_job_is_stored_told_and_handed_to_the_runner(
    service: Running, client: OpenAI, project: str
) -> None:
    training, validation = upload(client), upload(client)
    job = client.fine_tuning.jobs.create(
        model=BASE_MODEL,
        training_file=training,
        validation_file=validation,
        method=method(beta=0.2, divergence="js_divergence", n_epochs=2),
        suffix="demo",
        seed=7,
        metadata={"team": "a"},
    )
    assert job.id.startswith("ftjob-")
    assert (job.object, job.status, job.model, job.seed) == ("fine_tuning.job", "queued", BASE_MODEL, 7)
    assert (job.training_file, job.validation_file) == (training, validation)
    assert (job.organization_id, job.result_files, job.metadata) == (project, [], {"team": "a"})
    assert (job.error, job.fine_tuned_model, job.finished_at, job.trained_tokens) == (None, None, None, None)
    assert job.estimated_finish is None
    assert abs(job.created_at - time.time()) < 60
    assert job.hyperparameters.n_epochs == 2
    assert isinstance(job.hyperparameters.batch_size, int)
    echoed = job.to_dict()["method"]
    assert echoed["type"] == "f_dpo"
    assert echoed["f_dpo"]["hyperparameters"]["beta"] == 0.2
    assert "auto" not in echoed["f_dpo"]["hyperparameters"].values()
    assert client.fine_tuning.jobs.retrieve(job.id) == job

    enqueued = service.runner.enqueued[-1]
    assert (enqueued.id, enqueued.status, enqueued.project_name) == (job.id, "queued", project)
    assert (enqueued.suffix, enqueued.method_type, enqueued.base_model) == ("demo", "f_dpo", BASE_MODEL)
    assert enqueued.recipe["data"]["train"] == str(service.settings.files_dir / training)
    assert enqueued.recipe["output_dir"] == str(service.settings.jobs_dir / job.id)
    assert enqueued.recipe["seed"] == 7
    events = client.fine_tuning.jobs.list_events(job.id).data
    assert [event.message for event in events] == [
        "Files validated, job queued",
        f"Created fine-tuning job: {job.id}",
    ]
    assert {(event.level, event.type, event.object) for event in events} == {
        ("info", "message", "fine_tuning.job.event")
    }


def test_a_job_is_repeated_by_its_own_method(client: OpenAI) -> None:
    first = create_job(client, method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.3}}})
    given = first.method.model_dump()
    assert None in given.values(), "the client names the methods that it is not, too"
    again = create_job(client, method=given)
    assert again.method == first.method


def test_integrations_are_echoed_and_in_the_recipe(
    service: Running, client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignkit_server.jobs.preparation.installed", lambda _: True)
    wandb = {"project": "p", "name": "n", "entity": None, "tags": ["a"]}
    asked = [
        {"type": "wandb", "wandb": wandb},
        {"type": "trackio", "trackio": {"project": "p", "name": None}},
        {"type": "mlflow", "mlflow": {"project": "/Shared/p", "name": None}},
        {"type": "tensorboard"},
    ]
    job = create_job(client, integrations=asked)
    assert job.to_dict()["integrations"] == asked
    assert service.runner.enqueued[-1].recipe["training"]["report_to"] == [
        wandb | {"type": "wandb"},
        {"type": "trackio", "project": "p", "name": None},
        {"type": "mlflow", "project": "/Shared/p", "name": None},
        {"type": "tensorboard"},
    ]
    conforms(create_job(client, method={"type": "dpo"}, integrations=[asked[0]]))
    assert create_job(client, integrations=[]).integrations is None


def test_a_tracker_without_a_key_is_said_before_the_run(
    client: OpenAI, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("alignkit_server.jobs.preparation.installed", lambda _: True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    asked = [{"type": "wandb", "wandb": {"project": "p"}}]

    def said() -> bool:
        job = create_job(client, integrations=asked)
        events = client.fine_tuning.jobs.list_events(job.id).data
        return any("wandb has no API key on this server" in event.message for event in events)

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert said()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert not said()
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret")
    assert not said()


def test_a_context_shorter_than_the_trained_rows_is_said_before_the_run(
    service: Running, client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(**hyperparameters: int) -> list[str]:
        job = create_job(client, method=method(**hyperparameters))
        events = client.fine_tuning.jobs.list_events(job.id).data
        return [event.message for event in events if "serves a context" in event.message]

    assert said(max_length=400) == []
    monkeypatch.setattr(service.settings.engine, "max_model_len", 300)
    assert said(max_length=300) == []
    (told,) = said(max_length=400)
    assert "up to max_length 400, but the engine of tiny-llama serves a context of 300 tokens" in told
    assert told.endswith("raise ALIGNKIT_ENGINE__MAX_MODEL_LEN")
    monkeypatch.setattr(service.settings.engine, "urls", {"tiny-llama": "http://elsewhere"})
    assert said(max_length=400) == []


def test_a_seed_is_made_where_none_is_given(client: OpenAI) -> None:
    training = upload(client)
    seeds = {create_job(client, training_file=training).seed for _ in range(3)}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert create_job(client, training_file=training, seed=0).seed == 0


def test_what_is_odd_about_a_file_becomes_an_event(client: OpenAI) -> None:
    same = pairs(1).replace(b"That depends.", b"0.")
    job = create_job(client, training_file=upload(client, pairs(3) + same))
    warnings = [event for event in client.fine_tuning.jobs.list_events(job.id) if event.level == "warn"]
    assert len(warnings) == 1
    assert "training file" in warnings[0].message


def test_jobs_come_newest_first_in_pages(client: OpenAI) -> None:
    training = upload(client)
    ids = [create_job(client, training_file=training).id for _ in range(5)]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=2)] == ids[::-1]
    page = client.fine_tuning.jobs.list(limit=3, after=ids[3])
    assert [job.id for job in page.data] == ids[2::-1]
    assert not page.has_more
    assert client.fine_tuning.jobs.list(limit=2, after=ids[3]).has_more


def test_jobs_are_found_by_their_metadata(service: Running, client: OpenAI, key: str) -> None:
    training = upload(client)
    odd = "a b.c[d]'é%"
    first = create_job(client, training_file=training, metadata={"team": "a", odd: "1"}).id
    second = create_job(client, training_file=training, metadata={"team": "a"}).id
    none = create_job(client, training_file=training).id

    def found(**labels: str) -> list[str]:
        return [job.id for job in client.fine_tuning.jobs.list(metadata=labels)]

    assert found(team="a") == [second, first]
    assert found(team="b") == found(other="a") == []
    assert found(**{odd: "1", "team": "a"}) == [first]
    with service.http(key) as http:
        unlabelled = http.get("/v1/fine_tuning/jobs?metadata=null").json()
        assert [job["id"] for job in unlabelled["data"]] == [none]
        for query in ("metadata=a", "metadata=null&metadata[a]=b", 'metadata["]=b', "metadata[]=b"):
            answer = http.get(f"/v1/fine_tuning/jobs?{query}")
            assert answer.status_code == 400, query
            assert answer.json()["error"]["param"] == "metadata"


@pytest.mark.parametrize("status", ["queued", "running", "validating_files"])
def test_a_job_that_has_not_finished_is_cancelled_at_once(
    service: Running, client: OpenAI, status: str
) -> None:
    job = create_job(client)
    service.ledger.transition(job.id, status, only_from=("queued",), estimated_finish=1)
    cancelled = client.fine_tuning.jobs.cancel(job.id)
    assert cancelled.status == "cancelled"
    assert cancelled.finished_at is not None
    assert cancelled.estimated_finish is None
    assert client.fine_tuning.jobs.retrieve(job.id) == cancelled
    assert client.fine_tuning.jobs.list_events(job.id).data[0].message == "The job was cancelled"
    assert (service.runner.cancelled[-1].id, service.runner.cancelled[-1].status) == (job.id, "cancelled")


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
def test_a_finished_job_cannot_be_cancelled(service: Running, client: OpenAI, status: str) -> None:
    job = create_job(client)
    service.ledger.transition(job.id, status, only_from=("queued",))
    asked = len(service.runner.cancelled)
    with pytest.raises(
        openai.BadRequestError, match=f"already finished: its status is '{status}'"
    ) as refused:
        client.fine_tuning.jobs.cancel(job.id)
    assert refused.value.code == "job_already_finished"
    assert client.fine_tuning.jobs.retrieve(job.id).status == status
    assert len(service.runner.cancelled) == asked


def test_a_failed_job_says_why(service: Running, client: OpenAI) -> None:
    job = create_job(client)
    error = {"code": "training_died", "message": "It died.", "param": None}
    service.ledger.transition(job.id, "failed", only_from=("queued",), error=error, finished_at=5)
    failed = client.fine_tuning.jobs.retrieve(job.id)
    assert failed.error is not None
    assert failed.error.to_dict() == error
    assert failed.finished_at == 5


def test_an_unknown_job_is_not_found(client: OpenAI) -> None:
    jobs = client.fine_tuning.jobs
    for call in (jobs.retrieve, jobs.cancel, jobs.list_events, jobs.checkpoints.list):
        with pytest.raises(openai.NotFoundError, match="No such fine-tuning job: 'ftjob-unknown'"):
            call("ftjob-unknown")


def test_checkpoints_are_listed_once_they_are_published(service: Running, client: OpenAI) -> None:
    job = create_job(client)
    for step in (10, 20, 30):
        metrics = {"step": step, "train_loss": 0.5}
        service.ledger.add_checkpoint(job.id, step=step, model_name=None, metrics=metrics, path="p")
    assert client.fine_tuning.jobs.checkpoints.list(job.id).data == []
    for step in (10, 20, 30):
        name = f"ft:ckpt-step-{step}"
        service.ledger.add_checkpoint(job.id, step=step, model_name=name, metrics={}, path="p")
    page = client.fine_tuning.jobs.checkpoints.list(job.id, limit=2)
    assert [checkpoint.step_number for checkpoint in page.data] == [30, 20]
    assert page.has_more
    assert page.to_dict()["first_id"] == page.data[0].id
    assert page.to_dict()["last_id"] == page.data[1].id
    newest = page.data[0]
    assert newest.id.startswith("ftckpt_")
    assert newest.object == "fine_tuning.job.checkpoint"
    assert newest.fine_tuning_job_id == job.id
    assert newest.fine_tuned_model_checkpoint == "ft:ckpt-step-30"
    assert newest.metrics.train_loss == 0.5
    assert [checkpoint.step_number for checkpoint in page] == [30, 20, 10]
