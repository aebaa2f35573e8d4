"""A file that a job's term names: the project's own, of completions, and kept until the job has finished."""

from typing import Any

import openai
import pytest
import yaml
from openai import OpenAI

from alignkit_server.clock import now
from alignkit_server.storage.leftovers import remove_expired
from alignkit_server.tables import File
from tests.server.support import Running, create_job, method, upload

PLACE = "method.f_dpo.hyperparameters.terms.0.data"
VALIDATED: Any = {"validation_split": 0.5}


def anchored(client: OpenAI, file_id: str) -> Any:
    """A job whose anchor is measured on a file."""
    given = method(terms=[{"type": "anchor", "data": file_id}], **VALIDATED)
    return create_job(client, method=given)


def completions(client: OpenAI) -> str:
    """A file of completions."""
    row = b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}\n'
    return upload(client, row * 2, "kept.jsonl")


def test_the_run_reads_the_file_and_the_job_shows_its_id(service: Running, client: OpenAI) -> None:
    file_id = completions(client)
    job = anchored(client, file_id)
    read = service.ledger.get(job.id).recipe["terms"][0]["data"]
    assert read == str(service.settings.files_dir / file_id)
    shown = yaml.safe_load(client.get(f"/fine_tuning/jobs/{job.id}/recipe", cast_to=str))
    assert shown["terms"][0]["data"] == file_id
    assert job.method.to_dict()["f_dpo"]["hyperparameters"]["terms"][0]["data"] == file_id


def test_it_is_refused_at_its_place(service: Running, client: OpenAI, project: str) -> None:
    stranger = service.client(service.new_key(f"{project}-stranger"))
    for file_id, words in (
        ("file-none", "file-none"),
        ("../../etc/passwd", "passwd"),
        (completions(stranger), "file-"),
        (upload(client, purpose="batch"), "expected a file of purpose 'fine-tune'"),
        (upload(client, b'{"question": "a"}\n', "other.jsonl"), "other.jsonl"),
    ):
        with pytest.raises(openai.BadRequestError, match=words) as refused:
            anchored(client, file_id)
        assert refused.value.param == PLACE
        assert str(service.settings.root) not in str(refused.value)


def test_it_stays_until_the_job_has_finished(service: Running, client: OpenAI) -> None:
    file_id, other = completions(client), completions(client)
    job = anchored(client, file_id)
    with pytest.raises(openai.ConflictError, match=f"is used by the job {job.id}"):
        client.files.delete(file_id)
    with service.services.database.writing() as session:
        for row in session.query(File).where(File.id.in_([file_id, other])):
            row.expires_at = now() - 1
    remove_expired(service.services.database, service.settings)
    folder = service.settings.files_dir
    assert ((folder / file_id).exists(), (folder / other).exists()) == (True, False)
    client.fine_tuning.jobs.cancel(job.id)
    remove_expired(service.services.database, service.settings)
    assert not (folder / file_id).exists()


def test_a_probe_is_told_to_spoil_its_model(service: Running, client: OpenAI) -> None:
    job = create_job(client, method=method(flip={"share": 0.25}))
    assert service.ledger.get(job.id).recipe["data"]["flip"] == {"share": 0.25, "seed": 0}
    said = [event.message for event in client.fine_tuning.jobs.list_events(job.id) if event.level == "warn"]
    assert any("flip swaps the answers of 25% of the training pairs" in message for message in said)
