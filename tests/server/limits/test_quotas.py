"""Quotas of a project: what goes beyond is refused with 429, also when many ask at once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from alignkit_server.clock import now
from alignkit_server.database import Database
from alignkit_server.errors import ApiError
from alignkit_server.ids import FILE, new_id
from alignkit_server.keys.service import issue_key
from alignkit_server.limits.quotas import require_bytes
from alignkit_server.limits.repository import GPU_WINDOW
from alignkit_server.migrate import migrate
from alignkit_server.settings import Limits, Settings
from alignkit_server.tables import File, Project
from tests.server.support import Running, create_job, upload

THREADS = 8


@pytest.fixture
def limit(service: Running, project: str) -> Callable[..., None]:
    """Sets limits of the test's project."""
    projects = service.client(service.new_key("admins", "admin")).admin.organization.projects

    def set_limits(**limits: int) -> None:
        project_id = next(found.id for found in projects.list(limit=100) if found.name == project)
        projects.update(project_id, extra_body={"limits": limits})

    return set_limits


def refused(call: Callable[[], Any]) -> str:
    """The sentence of a 429 that says to ask no more."""
    with pytest.raises(openai.RateLimitError) as caught:
        call()
    error = caught.value
    assert (error.code, error.type) == ("quota_exceeded", "insufficient_quota")
    assert error.response.headers["x-should-retry"] == "false"
    return error.message


def test_only_so_many_jobs_wait(client: OpenAI, limit: Callable[..., None], service: Running) -> None:
    file_id = upload(client)
    limit(jobs_queued=2)
    jobs = [create_job(client, training_file=file_id) for _ in range(2)]
    message = refused(lambda: create_job(client, training_file=file_id))
    assert "limit is 2, and 2 are waiting" in message
    assert len(client.fine_tuning.jobs.list().data) == 2
    service.ledger.transition(jobs[0].id, "running", only_from=("queued",))
    assert create_job(client, training_file=file_id)
    limit(jobs_queued=0)
    refused(lambda: create_job(client, training_file=file_id))


def test_files_hold_only_so_much(client: OpenAI, limit: Callable[..., None], service: Running) -> None:
    limit(file_bytes=100)
    first = upload(client, b"x" * 60, purpose="user_data")
    before = set(service.settings.files_dir.iterdir())
    message = refused(lambda: upload(client, b"x" * 41, purpose="user_data"))
    assert "are limited to 100 bytes, use 60, and the new file has 41" in message
    assert set(service.settings.files_dir.iterdir()) == before
    assert upload(client, b"x" * 40, purpose="user_data")
    client.files.delete(first)
    assert upload(client, b"x" * 60, purpose="user_data")


def test_time_for_training_is_used_up_and_comes_back(
    client: OpenAI, limit: Callable[..., None], service: Running
) -> None:
    file_id = upload(client)
    job = create_job(client, training_file=file_id)
    service.ledger.transition(job.id, "running", only_from=("queued",))
    service.ledger.set_fields(job.id, run_seconds=1000)
    limit(gpu_seconds=1000)
    assert "its limit is 1,000 GPU seconds within 30 days" in refused(
        lambda: create_job(client, training_file=file_id)
    )
    service.ledger.transition(job.id, "succeeded", only_from=("running",))
    service.ledger.set_fields(job.id, run_seconds=999)
    assert create_job(client, training_file=file_id)
    service.ledger.set_fields(job.id, run_seconds=1000)
    refused(lambda: create_job(client, training_file=file_id))
    service.ledger.set_fields(job.id, started_at=now() - GPU_WINDOW - 10)
    assert create_job(client, training_file=file_id)


def test_another_project_s_use_does_not_count(
    client: OpenAI, limit: Callable[..., None], service: Running, project: str
) -> None:
    other = service.client(service.new_key(f"{project}-other"))
    upload(other, b"x" * 1000, purpose="user_data")
    create_job(other)
    limit(file_bytes=1000, jobs_queued=1)
    assert create_job(client)


def test_of_many_uploads_at_once_only_as_many_fit_as_there_is_room(
    client: OpenAI, limit: Callable[..., None]
) -> None:
    limit(file_bytes=1000)

    def try_upload(_: int) -> bool:
        try:
            return bool(upload(client, b"x" * 300, purpose="user_data"))
        except openai.RateLimitError:
            return False

    with ThreadPoolExecutor(THREADS) as pool:
        assert sum(pool.map(try_upload, range(THREADS))) == 3
    assert sum(file.bytes for file in client.files.list()) == 900


def test_the_check_and_what_it_allows_are_one_step(database_url: str, tmp_path: Path) -> None:
    """The same race on every kind of database, without HTTP to slow it down."""
    settings = Settings(home=tmp_path / "home", limits=Limits(file_bytes=1000))
    migrate(database_url)
    database = Database(database_url)
    with database.writing() as session:
        issue_key(session, "mine")
        project_id = session.query(Project).one().id

    def try_add(_: int) -> bool:
        try:
            with database.writing() as session:
                require_bytes(session, project_id, settings, 300)
                file = File(
                    id=new_id(FILE),
                    project_id=project_id,
                    filename="a",
                    purpose="user_data",
                    bytes=300,
                    created_at=now(),
                    expires_at=None,
                )
                session.add(file)
        except ApiError:
            return False
        return True

    try:
        with ThreadPoolExecutor(THREADS) as pool:
            assert sum(pool.map(try_add, range(4 * THREADS))) == 3
    finally:
        database.close()
