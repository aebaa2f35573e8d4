"""/v1/uploads through the official client: parts in any order, and everything that is no upload."""

import hashlib
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from alignkit_server.clock import now
from alignkit_server.tables import Upload
from tests.server.shapes import conforms
from tests.server.support import Running, create_job, pairs


def open_upload(client: OpenAI, size: int, **changes: Any) -> Any:
    request: dict[str, Any] = {
        "bytes": size,
        "filename": "pairs.jsonl",
        "mime_type": "application/jsonl",
        "purpose": "user_data",
    }
    return client.uploads.create(**request | changes)


def test_parts_become_a_file_in_the_order_they_are_named(service: Running, client: OpenAI) -> None:
    content = pairs(5)
    upload = open_upload(client, len(content), purpose="fine-tune")
    conforms(upload)
    assert (upload.status, upload.bytes, upload.file) == ("pending", len(content), None)
    assert upload.expires_at == upload.created_at + 3600
    second = client.uploads.parts.create(upload.id, data=content[100:])
    first = client.uploads.parts.create(upload.id, data=content[:100])
    unused = client.uploads.parts.create(upload.id, data=b"not in the file")
    conforms(unused)
    digest = hashlib.md5(content).hexdigest()
    done = client.uploads.complete(upload.id, part_ids=[first.id, second.id], md5=digest)
    conforms(done)
    assert done.status == "completed"
    assert done.file is not None
    assert client.files.content(done.file.id).read() == content
    assert client.files.retrieve(done.file.id) == done.file
    assert not (service.settings.uploads_dir / upload.id).exists()
    assert create_job(client, training_file=done.file.id).status == "queued"


def test_the_clients_own_chunked_upload_works(client: OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(pairs(40))
    done = client.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="fine-tune", part_size=1000
    )
    assert done.file is not None
    assert client.files.content(done.file.id).read() == path.read_bytes()


async def _upload(service: Running, key: str) -> Any:
    async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0) as client:
        return await client.uploads.upload_file_chunked(
            file=pairs(), filename="a.jsonl", bytes=len(pairs()), mime_type="x/y", purpose="user_data"
        )


def test_the_async_client_uploads_too(service: Running, key: str) -> None:
    import asyncio

    done = asyncio.run(_upload(service, key))
    conforms(done)
    assert done.file.purpose == "user_data"


def test_an_upload_without_bytes_is_an_empty_file(client: OpenAI) -> None:
    done = client.uploads.complete(open_upload(client, 0).id, part_ids=[])
    assert done.file is not None
    assert done.file.bytes == 0


def test_the_files_expiry_is_the_uploads(client: OpenAI) -> None:
    upload = open_upload(client, 0, expires_after={"anchor": "created_at", "seconds": 7200})
    file = client.uploads.complete(upload.id, part_ids=[]).file
    assert file is not None
    assert file.expires_at == file.created_at + 7200


def test_parts_that_are_not_the_file_are_refused_and_stay(client: OpenAI) -> None:
    upload = open_upload(client, 4)
    part = client.uploads.parts.create(upload.id, data=b"abcd")
    other = client.uploads.parts.create(open_upload(client, 4).id, data=b"abcd")
    for part_ids, md5, param, words in (
        ([], openai.omit, "part_ids", "expected parts with 4 bytes"),
        ([part.id, part.id], openai.omit, "part_ids", "listed twice"),
        ([other.id], openai.omit, "part_ids.0", other.id),
        ([part.id], "0" * 32, "md5", hashlib.md5(b"abcd").hexdigest()),
        ([part.id], "short", "md5", "short"),
    ):
        with pytest.raises(openai.BadRequestError, match=words) as refused:
            client.uploads.complete(upload.id, part_ids=part_ids, md5=md5)
        assert refused.value.param == param
    assert client.uploads.complete(upload.id, part_ids=[part.id]).status == "completed"


def test_an_upload_in_which_no_job_could_read_a_row_is_refused_and_stays(
    service: Running, client: OpenAI
) -> None:
    before = set(service.settings.files_dir.iterdir())
    upload = open_upload(client, 5, purpose="fine-tune")
    noise = client.uploads.parts.create(upload.id, data=b"\x89PNG\r")
    row = client.uploads.parts.create(upload.id, data=b"{}\n{}")
    with pytest.raises(openai.BadRequestError, match=r"fine-tuning: the file is a PNG picture") as refused:
        client.uploads.complete(upload.id, part_ids=[noise.id])
    assert (refused.value.param, refused.value.code) == ("file", "invalid_file")
    assert set(service.settings.files_dir.iterdir()) == before
    assert not list(service.settings.incoming_dir.rglob(".join-*"))
    assert client.uploads.complete(upload.id, part_ids=[row.id]).status == "completed"


def test_a_closed_upload_takes_no_more(service: Running, client: OpenAI) -> None:
    cancelled = open_upload(client, 1)
    client.uploads.parts.create(cancelled.id, data=b"a")
    answer = client.uploads.cancel(cancelled.id)
    conforms(answer)
    assert answer.status == "cancelled"
    assert not (service.settings.uploads_dir / cancelled.id).exists()
    completed = open_upload(client, 0)
    client.uploads.complete(completed.id, part_ids=[])
    expired = open_upload(client, 0)
    with service.services.database.writing() as session:
        session.query(Upload).where(Upload.id == expired.id).one().expires_at = now() - 1
    for upload, status in ((cancelled, "cancelled"), (completed, "completed"), (expired, "expired")):
        for call in (
            lambda upload_id: client.uploads.parts.create(upload_id, data=b"a"),
            lambda upload_id: client.uploads.complete(upload_id, part_ids=[]),
            client.uploads.cancel,
        ):
            with pytest.raises(openai.BadRequestError, match=f"is {status}") as refused:
                call(upload.id)
            assert refused.value.code == "upload_closed"


def test_an_expired_uploads_parts_are_removed_with_the_next_one(service: Running, client: OpenAI) -> None:
    upload = open_upload(client, 1)
    client.uploads.parts.create(upload.id, data=b"a")
    with service.services.database.writing() as session:
        session.query(Upload).where(Upload.id == upload.id).one().expires_at = now() - 1
    assert (service.settings.uploads_dir / upload.id).exists()
    open_upload(client, 1)
    assert not (service.settings.uploads_dir / upload.id).exists()


def test_limits(service: Running, client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.settings, "max_part_bytes", 10)
    monkeypatch.setattr(service.settings, "max_upload_bytes", 15)
    with pytest.raises(openai.APIStatusError, match="limit of 15") as large:
        open_upload(client, 16)
    assert (large.value.status_code, large.value.param) == (413, "bytes")
    upload = open_upload(client, 15)
    with pytest.raises(openai.APIStatusError, match="limit of 10") as part:
        client.uploads.parts.create(upload.id, data=b"x" * 11)
    assert (part.value.status_code, part.value.param) == (413, "data")
    client.uploads.parts.create(upload.id, data=b"x" * 10)
    with pytest.raises(openai.APIStatusError, match="limit of 15"):
        client.uploads.parts.create(upload.id, data=b"x" * 10)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"bytes": -1}, "bytes"),
        ({"purpose": "fine-tune-results"}, "purpose"),
        ({"filename": ""}, "filename"),
        ({"expires_after": {"anchor": "now", "seconds": 3600}}, "expires_after.anchor"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, "expires_after.seconds"),
    ],
)
def test_a_bad_upload_is_refused(client: OpenAI, changes: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        open_upload(client, 1, **changes)
    assert refused.value.param == param


def test_another_projects_upload_is_not_there(service: Running, client: OpenAI) -> None:
    upload = open_upload(client, 0)
    with service.client(service.new_key("stranger")) as stranger:
        for call in (
            stranger.uploads.cancel,
            lambda upload_id: stranger.uploads.complete(upload_id, part_ids=[]),
            lambda upload_id: stranger.uploads.parts.create(upload_id, data=b"a"),
        ):
            with pytest.raises(openai.NotFoundError, match="No such upload"):
                call(upload.id)
