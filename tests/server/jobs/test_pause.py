"""Pausing, resuming, waiting in the queue, and asking twice for one job, through the official client."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.server.support import BASE_MODEL, Running, create_job, method, upload


def test_a_paused_job_is_resumed_as_another_attempt(service: Running, client: OpenAI) -> None:
    jobs = client.fine_tuning.jobs
    job = create_job(client)
    service.ledger.transition(job.id, "running", only_from=("queued",), estimated_finish=1)
    paused = jobs.pause(job.id)
    assert (paused.status, paused.estimated_finish, paused.finished_at) == ("paused", None, None)
    assert job.id not in service.ledger.active_jobs(), "a server that starts again leaves it alone"
    with pytest.raises(openai.ConflictError, match="used by the job"):
        client.files.delete(job.training_file)
    resumed = jobs.resume(job.id)
    assert resumed.status == "queued"
    assert (service.runner.enqueued[-1].id, service.runner.enqueued[-1].attempt) == (job.id, 2)
    assert [event.message for event in jobs.list_events(job.id).data[:2]] == [
        "The job was resumed",
        "The job was paused",
    ]


def test_a_paused_job_can_be_cancelled(client: OpenAI) -> None:
    job = create_job(client)
    client.fine_tuning.jobs.pause(job.id)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"


@pytest.mark.parametrize(
    ("status", "action", "code"),
    [
        ("succeeded", "pause", "job_already_finished"),
        ("cancelled", "resume", "job_already_finished"),
        ("paused", "pause", "invalid_job_status"),
        ("running", "resume", "invalid_job_status"),
        ("queued", "resume", "invalid_job_status"),
    ],
)
def test_what_is_not_possible_is_refused(
    service: Running, client: OpenAI, status: str, action: str, code: str
) -> None:
    job = create_job(client)
    service.ledger.transition(job.id, status, only_from=("queued",))
    with pytest.raises(openai.BadRequestError, match=f"status is '{status}'") as refused:
        getattr(client.fine_tuning.jobs, action)(job.id)
    assert refused.value.code == code
    assert client.fine_tuning.jobs.retrieve(job.id).status == status


def test_waiting_jobs_know_their_place(service: Running, client: OpenAI) -> None:
    """How places follow from turns is tested with the turns."""

    def place(job_id: str) -> Any:
        return client.fine_tuning.jobs.retrieve(job_id).to_dict()["queue_position"]

    first, second, third = (create_job(client).id for _ in range(3))
    assert 1 <= place(first) < place(second) < place(third)
    listed = [job.to_dict()["queue_position"] for job in client.fine_tuning.jobs.list()]
    assert listed == [place(third), place(second), place(first)]
    client.fine_tuning.jobs.pause(first)
    service.ledger.transition(second, "running", only_from=("queued",))
    assert place(first) is place(second) is None
    client.fine_tuning.jobs.resume(first)
    assert place(first) is not None
    assert place(third) is not None


def test_the_same_key_and_body_give_the_same_job(service: Running, client: OpenAI) -> None:
    training = upload(client)
    enqueued = len(service.runner.enqueued)

    def create(_: int = 0, key: str = "one", **changes: Any) -> Any:
        return create_job(client, training_file=training, extra_headers={"Idempotency-Key": key}, **changes)

    with ThreadPoolExecutor(4) as pool:
        ids = {job.id for job in pool.map(create, range(8))}
    assert len(ids) == 1
    assert len(service.runner.enqueued) == enqueued + 1
    assert len(client.fine_tuning.jobs.list().data) == 1
    assert create(key="two").id not in ids
    with pytest.raises(openai.ConflictError, match="another body") as reused:
        create(seed=3)
    assert (reused.value.code, reused.value.param) == ("idempotency_key_reused", "Idempotency-Key")
    with pytest.raises(openai.BadRequestError):
        create(key="a b")
    with service.client(service.new_key("stranger")) as stranger:
        job = create_job(stranger, extra_headers={"Idempotency-Key": "one"})
        assert job.id not in ids


def test_without_a_method_a_job_is_supervised(client: OpenAI) -> None:
    rows = (
        b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n' * 4
    )
    training = upload(client, rows)
    jobs = client.fine_tuning.jobs
    plain = jobs.create(model=BASE_MODEL, training_file=training)
    old = jobs.create(model=BASE_MODEL, training_file=training, hyperparameters={"n_epochs": 2})
    new = jobs.create(
        model=BASE_MODEL,
        training_file=training,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
    )
    for job in (plain, old, new):
        assert job.method is not None
        assert job.method.type == "supervised"
    assert old.method == new.method
    assert old.hyperparameters.n_epochs == 2
    with pytest.raises(openai.BadRequestError, match=r"method\.supervised\.hyperparameters") as both:
        jobs.create(
            model=BASE_MODEL,
            training_file=training,
            method={"type": "supervised"},
            hyperparameters={"n_epochs": 2},
        )
    assert both.value.param == "hyperparameters"
    with pytest.raises(openai.BadRequestError, match=r"400 - hyperparameters\.n_epochs") as refused:
        jobs.create(model=BASE_MODEL, training_file=training, hyperparameters={"n_epochs": 51})
    assert refused.value.param == "hyperparameters.n_epochs"


def test_method_is_still_refused_where_it_is_not_known(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="reinforcement"):
        create_job(client, method=method() | {"type": "reinforcement"})
