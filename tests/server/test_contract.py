"""OpenAI's fine-tuning API, call by call, through the official client: every answer is what its models say."""

import asyncio
from typing import Any

import pydantic
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import FileObject

from alignkit_server.catalog.names import model_name
from tests.server.shapes import conforms
from tests.server.support import BASE_MODEL, Running, method, pairs

CHAT = b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n' * 4
DPO: Any = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 1}}}


def finish(service: Running, job_id: str, project: str) -> str:
    """Let the job succeed, with a checkpoint and a metric; the checkpoint's name."""
    name = model_name(BASE_MODEL, project, None, job_id)
    checkpoint = model_name(BASE_MODEL, project, None, job_id, 10)
    ledger = service.ledger
    ledger.add_event(
        job_id, level="info", message="Step 1", type="metrics", data={"step": 1, "train_loss": 1}
    )
    metrics = {"train_loss": 0.5, "valid_loss": None}
    ledger.add_checkpoint(job_id, step=10, model_name=checkpoint, metrics=metrics, path="p")
    for model, step in ((name, None), (checkpoint, 10)):
        ledger.add_model(job_id, name=model, base_model=BASE_MODEL, kind="adapter", path="p", step=step)
    error = {"code": "x", "message": "y", "param": None}
    ledger.transition(
        job_id, "succeeded", only_from=("queued",), fine_tuned_model=name, finished_at=5, error=error
    )
    return checkpoint


def test_every_call_of_the_sync_client(service: Running, client: OpenAI, project: str) -> None:
    answers: list[Any] = []

    def keep(answer: Any) -> Any:
        answers.append(answer)
        return answer

    jobs = client.fine_tuning.jobs
    file = keep(client.files.create(file=("a.jsonl", pairs()), purpose="fine-tune"))
    keep(client.files.retrieve(file.id))
    keep(client.files.list())
    keep(client.files.wait_for_processing(file.id))
    assert client.files.content(file.id).text == pairs().decode()
    job = keep(
        jobs.create(
            model=BASE_MODEL,
            training_file=file.id,
            validation_file=file.id,
            method=DPO,
            suffix="s",
            seed=1,
            metadata={"a": "b"},
        )
    )
    keep(jobs.retrieve(job.id))
    keep(jobs.list(metadata={"a": "b"}))
    chats = client.files.create(file=("chats.jsonl", CHAT), purpose="fine-tune").id
    keep(jobs.create(model=BASE_MODEL, training_file=chats, hyperparameters={"n_epochs": 1}))
    jobs.pause(job.id)  # its status is in OpenAI's examples, not in the client's list
    keep(jobs.resume(job.id))
    checkpoint = finish(service, job.id, project)
    keep(jobs.retrieve(job.id))
    keep(jobs.list_events(job.id))
    keep(jobs.checkpoints.list(job.id))
    permissions = client.fine_tuning.checkpoints.permissions
    keep(permissions.list(checkpoint))
    keep(client.models.list())
    keep(client.models.retrieve(checkpoint))
    keep(client.models.delete(checkpoint))
    other = jobs.create(model=BASE_MODEL, training_file=file.id, method=DPO)
    keep(jobs.cancel(other.id))
    keep(client.files.delete(file.id))
    for answer in answers:
        conforms(answer)


async def _every_async_call(service: Running, key: str) -> list[Any]:
    async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0) as client:
        jobs = client.fine_tuning.jobs
        file = await client.files.create(file=("a.jsonl", pairs()), purpose="fine-tune")
        job = await jobs.create(model=BASE_MODEL, training_file=file.id, method=DPO)
        paused = await jobs.pause(job.id)
        assert paused.status == "paused"  # type: ignore[comparison-overlap]
        answers = [
            file,
            job,
            await jobs.resume(job.id),
            await jobs.cancel(job.id),
            await jobs.retrieve(job.id),
            *[found async for found in jobs.list()],
            *[event async for event in jobs.list_events(job.id, limit=2)],
            await jobs.checkpoints.list(job.id),
            *[model async for model in client.models.list()],
            await client.files.delete(file.id),
        ]
    assert len(answers) >= 10
    return answers


def test_every_call_of_the_async_client(service: Running, key: str) -> None:
    for answer in asyncio.run(_every_async_call(service, key)):
        conforms(answer)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize(
    "change",
    [{"bytes": "7"}, {"purpose": "else"}, {"created_at": None}, {"colour": "red"}, {"object": "folder"}],
)
def test_what_does_not_conform_is_found(client: OpenAI, change: dict[str, Any]) -> None:
    right = client.files.create(file=("a", pairs()), purpose="fine-tune").to_dict()
    conforms(FileObject.construct(**right))
    with pytest.raises((AssertionError, pydantic.ValidationError)):
        conforms(FileObject.construct(**right | change))


def test_our_methods_go_through_the_clients_types(client: OpenAI) -> None:
    file = client.files.create(file=("a.jsonl", pairs()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=BASE_MODEL, training_file=file.id, method=method(divergence="jeffreys")
    )
    assert job.method is not None
    assert job.method.to_dict()["f_dpo"] == {
        "hyperparameters": job.to_dict()["method"]["f_dpo"]["hyperparameters"]  # type: ignore[index]
    }
