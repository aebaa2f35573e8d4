"""What a project has on disk is counted, goes when it is over, and stops jobs at its limit."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from sqlalchemy import select, update

from alignkit_server.clock import now
from alignkit_server.storage import leftovers
from alignkit_server.storage.runs import bytes_on_disk
from alignkit_server.sweeper.logs import rotate
from alignkit_server.tables import File, Job, Project, Upload, UploadPart
from tests.server.support import BASE_MODEL, Running, create_job, upload
from tests.server.uploads.test_uploads import open_upload

Use = Callable[..., dict[str, int]]


@pytest.fixture
def admin(service: Running) -> Iterator[Any]:
    with service.client(service.new_key("admins", "admin")) as client:
        yield client.admin.organization.projects


@pytest.fixture
def use(admin: Any, project: str, client: OpenAI) -> Use:
    """What the test's project uses; with limits, they are set first."""

    def find(**limits: int | None) -> dict[str, int]:
        found = next(each for each in admin.list(limit=100) if each.name == project)
        usage: dict[str, int] = admin.update(found.id, extra_body={"limits": limits}).usage
        return usage

    assert client
    return find


def fill(folder: Path, name: str, size: int) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"x" * size)


def finished(service: Running, client: OpenAI, status: str = "succeeded") -> str:
    """A job with two checkpoints and an adapter on disk, each published under a name of its own."""
    job_id: str = create_job(client).id
    folder = service.settings.jobs_dir / job_id
    for name in ("adapter/a", "checkpoints/checkpoint-2/a", "checkpoints/checkpoint-4/a", "train.log"):
        fill(folder, name, 1000)
    for step in (None, 2, 4):
        name, path = f"ft:{job_id}:{step}", service.settings.adapters_dir / BASE_MODEL / f"{job_id}-{step}"
        fill(path, "weights", 100)
        service.ledger.add_model(
            job_id, name=name, base_model=BASE_MODEL, kind="adapter", path=str(path), step=step
        )
    service.ledger.transition(job_id, "running", only_from=("queued",))
    service.ledger.transition(job_id, status, only_from=("running",), finished_at=now())
    return job_id


def test_parts_of_uploads_count_and_are_not_more_than_the_quota(client: OpenAI, use: Use) -> None:
    use(file_bytes=100)
    first, second = (open_upload(client, 0).id for _ in range(2))
    client.uploads.parts.create(first, data=b"x" * 60)
    assert use()["file_bytes"] == 60
    with pytest.raises(openai.RateLimitError, match="limited to 100 bytes, use 60, and the new file has 41"):
        client.uploads.parts.create(second, data=b"x" * 41)
    with pytest.raises(openai.RateLimitError):
        upload(client, b"x" * 41, purpose="user_data")
    client.uploads.cancel(first)
    assert use()["file_bytes"] == 0


def test_a_file_that_just_fits_can_come_in_parts(client: OpenAI, use: Use) -> None:
    use(file_bytes=60)
    opened = open_upload(client, 60)
    part = client.uploads.parts.create(opened.id, data=b"x" * 60)
    assert client.uploads.complete(opened.id, part_ids=[part.id]).status == "completed"
    assert use()["file_bytes"] == 60


def test_expired_uploads_go_by_themselves_whoever_asks(service: Running, client: OpenAI) -> None:
    opened = open_upload(client, 0)
    client.uploads.parts.create(opened.id, data=b"x" * 60)
    with service.services.database.writing() as session:
        session.execute(update(Upload).where(Upload.id == opened.id).values(expires_at=now() - 1))
    service.services.sweeper.sweep()
    assert not (service.settings.uploads_dir / opened.id).exists()
    with service.services.database.reading() as session:
        assert session.scalar(select(Upload.status).where(Upload.id == opened.id)) == "expired"
        assert session.scalar(select(UploadPart.seq).where(UploadPart.upload_id == opened.id)) is None


def test_a_purge_of_many_files_takes_batches_and_leaves_those_in_use(
    service: Running, client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "BATCH", 10)
    used = upload(client)
    create_job(client, training_file=used)
    database, committed = service.services.database, []
    with database.writing() as session:
        owner = session.query(File).where(File.id == used).one()
        owner.expires_at = now() - 1
        for number in range(25):
            gone = File(id=f"file-{used}-{number}", project_id=owner.project_id, filename="a", bytes=1)
            gone.purpose, gone.created_at, gone.expires_at = "user_data", 1, now() - 1
            session.add(gone)
            fill(service.settings.files_dir, gone.id, 1)
    writing = database.writing

    def counted() -> Any:
        committed.append(1)
        return writing()

    monkeypatch.setattr(database, "writing", counted)
    leftovers.remove_expired(database, service.settings)
    left = {path.name for path in service.settings.files_dir.glob(f"file-{used}*")} | {used}
    assert left == {used}
    assert (service.settings.files_dir / used).exists()
    assert len(committed) >= 3


def test_what_has_no_row_goes_after_a_day(service: Running) -> None:
    files, parts = service.settings.files_dir / "file-lost", service.settings.uploads_dir / "upload-lost"
    young = service.settings.files_dir / "file-young"
    for path in (files, parts / "part", young):
        fill(path.parent, path.name, 1)
    for path in (files, parts):
        os.utime(path, (1, 1))
    leftovers.remove_expired(service.services.database, service.settings)
    assert [path.exists() for path in (files, parts, young)] == [False, False, True]
    young.unlink()


def test_an_upload_without_a_write_for_an_hour_goes(service: Running) -> None:
    old, young = (
        service.settings.incoming_dir / "proj-lost" / f".upload-{name}" for name in ("old", "young")
    )
    for path, seconds in ((old, 3700), (young, 60)):
        fill(path.parent, path.name, 1)
        os.utime(path, (time.time() - seconds,) * 2)
    leftovers.remove_expired(service.services.database, service.settings)
    assert [path.exists() for path in (old, young)] == [False, True]
    young.unlink()


def test_a_copy_of_an_uploads_parts_counts_while_they_are_joined(client: OpenAI, use: Use) -> None:
    use(disk_bytes=119)
    opened = open_upload(client, 60)
    part = client.uploads.parts.create(opened.id, data=b"x" * 60)
    words = "may have 119 bytes, they have 60, and it needs 60 while its parts are joined"
    with pytest.raises(openai.RateLimitError, match=words):
        client.uploads.complete(opened.id, part_ids=[part.id])
    use(disk_bytes=120)
    assert client.uploads.complete(opened.id, part_ids=[part.id]).status == "completed"
    assert use()["disk_bytes"] == 60


def test_linked_files_count_once(tmp_path: Path) -> None:
    fill(tmp_path / "a", "weights", 100)
    (tmp_path / "b").mkdir()
    os.link(tmp_path / "a" / "weights", tmp_path / "b" / "weights")
    assert bytes_on_disk([tmp_path / "a", tmp_path / "b", tmp_path / "none"]) == 100


def test_checkpoints_adapters_and_logs_count_and_go_with_their_models(
    service: Running, client: OpenAI, use: Use
) -> None:
    job_id = finished(service, client)
    fill(service.settings.engine_caches_dir / f"{job_id}-2", "graph", 10)
    service.services.sweeper.sweep()
    files = use()["file_bytes"]
    assert use()["disk_bytes"] == files + 4 * 1000 + 3 * 100 + 10
    folder = service.settings.jobs_dir / job_id
    client.models.delete(f"ft:{job_id}:2")
    assert not (folder / "checkpoints" / "checkpoint-2").exists()
    assert (folder / "checkpoints" / "checkpoint-4").exists()
    assert use()["disk_bytes"] < files + 4 * 1000
    for step in (4, None):
        client.models.delete(f"ft:{job_id}:{step}")
    assert not folder.exists()


def test_a_project_without_space_gets_no_file_and_no_job(service: Running, client: OpenAI, use: Use) -> None:
    file_id = upload(client)
    finished(service, client)
    service.services.sweeper.sweep()
    use(disk_bytes=use()["disk_bytes"])
    for call in (
        lambda: upload(client, b"x", purpose="user_data"),
        lambda: create_job(client, training_file=file_id),
    ):
        with pytest.raises(openai.RateLimitError, match="files, jobs and models may have"):
            call()


def test_a_finished_job_is_pruned_and_an_unfinished_one_is_not(
    service: Running, client: OpenAI, key: str
) -> None:
    job_id, waiting = finished(service, client), create_job(client).id
    with service.http(key) as http:
        answer = http.post(f"/v1/fine_tuning/jobs/{job_id}/prune")
        assert answer.json() == {"id": job_id, "object": "fine_tuning.job.pruned", "pruned": True}
        assert not (service.settings.jobs_dir / job_id).exists()
        assert http.post(f"/v1/fine_tuning/jobs/{waiting}/prune").status_code == 400
        client.fine_tuning.jobs.cancel(waiting)
        assert "may still be ending" in http.post(f"/v1/fine_tuning/jobs/{waiting}/prune").text
    assert client.models.retrieve(f"ft:{job_id}:2")
    assert client.fine_tuning.jobs.list_events(job_id).data


def test_folders_are_kept_for_so_many_days(service: Running, client: OpenAI) -> None:
    old, new = finished(service, client), finished(service, client, "failed")
    days = service.settings.run_retention_days or 0
    service.ledger.set_fields(old, finished_at=now() - int(days * 86400) - 1)
    service.services.sweeper.sweep()
    assert [(service.settings.jobs_dir / job).exists() for job in (old, new)] == [False, True]


def running_for(service: Running, client: OpenAI, seconds: int) -> str:
    job_id: str = create_job(client).id
    service.ledger.transition(job_id, "running", only_from=("queued",))
    with service.services.database.writing() as session:
        session.execute(update(Job).where(Job.id == job_id).values(running_since=now() - seconds))
    return job_id


def last_event(client: OpenAI, job_id: str) -> str:
    return client.fine_tuning.jobs.list_events(job_id, limit=1).data[0].message


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"job_gpu_seconds": 1000}, "one job may take 1,000 GPU seconds, and it has taken 1,0"),
        ({"gpu_seconds": 1000}, "time for training is used up: its limit is 1,000 GPU seconds"),
        ({"disk_bytes": 1}, "space is used up"),
    ],
)
def test_a_job_that_comes_to_a_limit_is_paused_and_says_why(
    service: Running, client: OpenAI, use: Use, limits: dict[str, int], words: str
) -> None:
    job_id = running_for(service, client, 1001)
    service.services.sweeper.sweep()
    assert service.ledger.get(job_id).status == "running"
    use(**limits)
    service.services.sweeper.sweep()
    assert service.ledger.get(job_id).status == "paused"
    assert words in last_event(client, job_id)
    with pytest.raises(openai.RateLimitError, match=words.partition(":")[0][-20:]):
        client.fine_tuning.jobs.resume(job_id)
    use(**dict.fromkeys(limits))
    assert client.fine_tuning.jobs.resume(job_id).status == "queued"


def test_there_is_a_limit_of_time_by_default(service: Running) -> None:
    limits = service.settings.limits
    assert limits.job_gpu_seconds == 7 * 24 * 3600
    assert limits.gpu_seconds == 60 * 24 * 3600


def test_a_log_is_cut_while_its_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    with path.open("ab", buffering=0) as log:
        log.write(b"a" * 50 + b"b" * 50)
        rotate(path, 100)
        assert not path.with_name("train.log.1").exists()
        log.write(b"c")
        rotate(path, 100)
        log.write(b"later")
    assert path.read_bytes() == b"later"
    assert path.with_name("train.log.1").read_bytes() == b"a" * 49 + b"b" * 50 + b"c"


def test_one_task_that_fails_keeps_no_other_from_being_done(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    monkeypatch.setattr("alignkit_server.sweeper.sweeper.remove_expired", lambda *_: 1 / 0)
    monkeypatch.setattr("alignkit_server.sweeper.sweeper.rotate_logs", lambda *_: done.append(time.time()))
    service.services.sweeper.sweep()
    assert done


def test_a_projects_references_count_and_go_when_unused(service: Running, project: str, use: Use) -> None:
    service.services.sweeper.sweep()
    before = use()["disk_bytes"]
    with service.services.database.reading() as session:
        project_id = session.query(Project).filter(Project.name == project).one().id
    folder = service.settings.references_dir / project_id
    fill(folder / "ab", "abcd.f32", 700)
    fill(service.settings.references_dir / "proj_other" / "ab", "abcd.f32", 900)
    service.services.sweeper.sweep()
    assert use()["disk_bytes"] == before + 700
    os.utime(folder / "ab" / "abcd.f32", (1, 1))
    service.services.sweeper.sweep()
    assert use()["disk_bytes"] == before
    assert not (folder / "ab" / "abcd.f32").exists()


def test_a_projects_token_ids_count_and_go_when_unused_or_with_their_file(
    service: Running, project: str, client: OpenAI, use: Use
) -> None:
    kept, deleted = upload(client), upload(client)
    service.services.sweeper.sweep()
    before = use()["disk_bytes"]
    with service.services.database.reading() as session:
        project_id = session.query(Project).filter(Project.name == project).one().id
    folder = service.settings.tokens_dir / project_id
    for file_id, size in ((kept, 300), (deleted, 500)):
        fill(folder / file_id, "abcd.tokens", size)
    fill(service.settings.tokens_dir / "proj_other" / kept, "abcd.tokens", 900)
    fill(folder / kept, "old.tokens", 7)
    os.utime(folder / kept / "old.tokens", (1, 1))
    service.services.sweeper.sweep()
    assert use()["disk_bytes"] == before + 800
    size = service.settings.files_dir.joinpath(deleted).stat().st_size
    client.files.delete(deleted)
    service.services.sweeper.sweep()
    assert use()["disk_bytes"] == before - size + 300
    assert [path.relative_to(folder) for path in folder.glob("*/*")] == [Path(kept, "abcd.tokens")]
    assert not (folder / deleted).exists()
