"""A full disk: reading, chatting and deleting go on, what needs space is 507, and readiness says so."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from sqlalchemy import text

from alignkit_server.clock import now
from alignkit_server.keys import service as keys
from alignkit_server.reserve import FILE_NAME, Reserve, ample_bytes, free_bytes, reserve_bytes
from tests.evaluate.endpoint import endpoint
from tests.server.disk import OTHERS, fill, full, mounted
from tests.server.evals.conftest import OneEngine, reply
from tests.server.support import (
    BASE_MODEL,
    Running,
    create_job,
    method,
    pairs,
    serve,
    upload,
    wait_until,
)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Large enough that its reserve holds what two databases write ahead meanwhile."""
    with mounted(tmp_path_factory.mktemp("disks") / "disk", 200) as folder:
        yield folder


@pytest.fixture(scope="module")
def service(disk: Path) -> Iterator[Running]:
    with (
        endpoint(lambda _: reply("yes")) as engine,
        serve(disk / "home", engines=OneEngine(engine.url.removesuffix("/v1"))) as running,
    ):
        yield running


def readiness(service: Running) -> tuple[int, str]:
    with service.http(None) as http:
        answer = http.get("/readyz")
        return answer.status_code, answer.json().get("error", {}).get("message", "")


def test_on_a_full_disk_only_what_needs_space_is_refused(service: Running, disk: Path) -> None:
    client = service.client(service.new_key("full"))
    kept, deleted = upload(client), upload(client)
    with service.services.database.writing() as session:
        session.execute(text("UPDATE api_keys SET last_used_at = 1"))
    keys._stamped_again_at.clear()
    with full(disk):
        wait_until(lambda: readiness(service) == (503, "The disk is full."))
        assert {file.id for file in client.files.list()} == {kept, deleted}
        assert client.files.content(kept).read() == pairs()
        for refused in (
            lambda: upload(client),
            lambda: client.uploads.create(bytes=9, filename="a.jsonl", mime_type="a/b", purpose="fine-tune"),
            lambda: client.fine_tuning.jobs.create(model="tiny-llama", training_file=kept, method=method()),
        ):
            with pytest.raises(openai.APIStatusError) as caught:
                refused()
            assert caught.value.status_code == 507
            assert (caught.value.type, caught.value.code) == ("server_error", "disk_full")
            assert caught.value.response.headers["x-should-retry"] == "false"
        assert client.files.delete(deleted).deleted
        assert [file.id for file in client.files.list()] == [kept]
    wait_until(lambda: readiness(service)[0] == 200)
    assert upload(client)


def test_on_a_full_disk_models_answer_and_are_deleted_and_jobs_are_paused_and_cancelled(
    service: Running, disk: Path
) -> None:
    client = service.client(service.new_key("full-too"))
    running, waiting = (create_job(client).id for _ in range(2))
    service.ledger.transition(running, "running", only_from=("queued",))
    model, folder = finished(service, client)
    with full(disk):
        leave_the_reserve(disk)
        assert readiness(service) == (503, "The disk is full.")
        question: Any = {"model": BASE_MODEL, "messages": [{"role": "user", "content": "Is it?"}]}
        assert client.chat.completions.create(**question).choices[0].message.content == "yes"
        assert client.models.delete(model).deleted
        assert not folder.exists()
        assert client.fine_tuning.jobs.pause(running).status == "paused"
        for job_id in (running, waiting):
            assert client.fine_tuning.jobs.cancel(job_id).status == "cancelled"
    statuses = {job.id: job.status for job in client.fine_tuning.jobs.list()}
    assert (statuses[running], statuses[waiting]) == ("cancelled", "cancelled")
    assert model not in {found.id for found in client.models.list()}


def leave_the_reserve(disk: Path) -> None:
    """Free what the filling file took of the reserve, which may be given up while that file still grows."""
    wait_until(lambda: not (disk / "home" / FILE_NAME).exists())
    missing = reserve_bytes(disk) - free_bytes(disk)
    if missing > 0:
        others = disk / OTHERS
        os.truncate(others, others.stat().st_size - missing)


def finished(service: Running, client: OpenAI) -> tuple[str, Path]:
    """A job's model: its name, and the folder of the job's run."""
    job_id = create_job(client).id
    folder, name = service.settings.jobs_dir / job_id, f"ft:{BASE_MODEL}:{job_id}"
    published = service.settings.adapters_dir / BASE_MODEL / name
    for place in (folder / "adapter", published):
        place.mkdir(parents=True)
        (place / "weights").write_bytes(bytes(1000))
    service.ledger.add_model(
        job_id, name=name, base_model=BASE_MODEL, kind="adapter", path=str(published), step=None
    )
    service.ledger.transition(job_id, "running", only_from=("queued",))
    service.ledger.transition(job_id, "succeeded", only_from=("running",), finished_at=now())
    return name, folder


def test_the_reserve_is_given_up_for_others_and_made_again(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", 20) as disk:
        reserve = Reserve(disk)
        reserve.look()
        assert free_bytes(disk) <= 19 * 2**20
        assert not reserve.is_low()
        fill(disk / "other")
        assert reserve.is_low()
        reserve.look()
        assert reserve_bytes(disk) <= free_bytes(disk) < ample_bytes(disk)
        assert reserve.is_low(), "the reserve is for small things"
        reserve.look()
        assert not (disk / ".reserve").exists()
        (disk / "other").unlink()
        reserve.look()
        assert (disk / ".reserve").stat().st_size == reserve_bytes(disk)
        assert not reserve.is_low()


def test_a_key_whose_use_cannot_be_stored_opens_all_the_same(
    service: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    key = service.new_key("stampless")
    monkeypatch.setattr(keys.KeyRepository, "get", refuse)
    with service.http(key) as http:
        assert http.get("/v1/models").status_code == 200
    wait_until(lambda: "the use of a key is not stored" in caplog.text)
    assert key not in caplog.text


def test_a_use_that_takes_long_to_store_delays_requests_once(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_mark_used", lambda *_: time.sleep(1))
    with service.http(service.new_key("slow")) as http:
        began = time.monotonic()
        answers: list[httpx.Response] = [http.get("/v1/models") for _ in range(3)]
        assert time.monotonic() - began < 1
    assert {answer.status_code for answer in answers} == {200}


def test_an_outage_in_a_request_is_503_and_may_be_tried_again(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error: /srv/secret")

    monkeypatch.setattr(service.services.catalog, "bases", fail)
    with service.http(service.new_key("unlucky")) as http:
        answer = http.get("/v1/models")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"]
    assert "secret" not in answer.text
