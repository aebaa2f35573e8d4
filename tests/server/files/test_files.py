"""/v1/files through the official client, and what it refuses."""

import asyncio
import contextlib
import gzip
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from alignkit_server.clock import now
from alignkit_server.files.service import safe_filename
from alignkit_server.tables import File
from tests.server.support import Running, create_job, pairs, upload, wait_until


def test_a_file_is_kept_listed_read_and_deleted(service: Running, client: OpenAI) -> None:
    content = pairs()
    file = client.files.create(file=("pairs.jsonl", content), purpose="fine-tune")
    assert file.id.startswith("file-")
    assert (file.object, file.bytes, file.filename) == ("file", len(content), "pairs.jsonl")
    assert (file.purpose, file.status, file.expires_at) == ("fine-tune", "processed", None)
    assert abs(file.created_at - time.time()) < 60
    assert client.files.retrieve(file.id) == file
    assert client.files.list().data == [file]
    assert client.files.content(file.id).read() == content
    assert client.files.delete(file.id).deleted
    assert client.files.list().data == []
    assert not (service.settings.files_dir / file.id).exists()
    for call in (client.files.retrieve, client.files.delete, client.files.content):
        with pytest.raises(openai.NotFoundError, match=file.id):
            call(file.id)


def test_pages_follow_each_other_in_both_orders(client: OpenAI) -> None:
    ids = [upload(client, name=f"{n}.jsonl") for n in range(5)]
    assert [file.id for file in client.files.list(limit=2)] == ids[::-1]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == ids
    page = client.files.list(limit=2, after=ids[3])
    assert [file.id for file in page.data] == [ids[2], ids[1]]
    assert page.has_more
    assert (page.first_id, page.last_id) == (ids[2], ids[1])
    assert not client.files.list(limit=2, after=ids[1]).has_more


def test_a_page_goes_on_after_a_file_that_the_list_leaves_out(client: OpenAI) -> None:
    older, other = upload(client), upload(client, b"x", purpose="user_data")
    assert [file.id for file in client.files.list(purpose="fine-tune", after=other)] == [older]


def test_a_list_is_narrowed_to_a_purpose(client: OpenAI) -> None:
    upload(client)
    other = upload(client, b"x", purpose="user_data")
    assert [file.id for file in client.files.list(purpose="user_data")] == [other]


def test_a_page_after_an_unknown_file_or_without_length_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.files.list(after="file-unknown")
    assert unknown.value.param == "after"
    with pytest.raises(openai.BadRequestError, match=r"limit: .*greater than or equal to 1, found '0'"):
        client.files.list(limit=0)


def test_a_file_expires(service: Running, client: OpenAI) -> None:
    content = ("pairs.jsonl", pairs())
    after: Any = {"anchor": "created_at", "seconds": 3600}
    file = client.files.create(file=content, purpose="fine-tune", expires_after=after)
    assert file.expires_at == file.created_at + 3600
    with service.services.database.writing() as session:
        row = session.query(File).where(File.id == file.id).one()
        row.expires_at = now() - 1
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    assert (service.settings.files_dir / file.id).exists()
    upload(client)
    assert not (service.settings.files_dir / file.id).exists()


@pytest.mark.parametrize(
    ("after", "param"),
    [
        ({"anchor": "now", "seconds": 3600}, "expires_after.anchor"),
        ({"anchor": "created_at", "seconds": 1}, "expires_after.seconds"),
        ({"anchor": "created_at"}, "expires_after.seconds"),
    ],
)
def test_a_bad_expiry_is_refused(client: OpenAI, after: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=("a", b"b"), purpose="fine-tune", expires_after=after)
    assert refused.value.param == param


@pytest.mark.parametrize("purpose", ["fine-tune-results", "anything", ""])
def test_an_unknown_purpose_is_refused(client: OpenAI, purpose: Any) -> None:
    with pytest.raises(
        openai.BadRequestError, match=r"expected one of assistants, batch, .*fine-tune"
    ) as refused:
        upload(client, purpose=purpose)
    assert refused.value.param == "purpose"


def test_a_file_over_the_limit_is_refused_and_leaves_nothing(
    service: Running, client: OpenAI, key: str
) -> None:
    limit = service.settings.max_file_bytes
    before = set(service.settings.files_dir.iterdir())
    with pytest.raises(openai.APIStatusError, match=f"larger than the limit of {limit} bytes") as declared:
        upload(client, b"x" * (limit + 2**20))
    assert declared.value.status_code == 413

    def chunks() -> Any:
        yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(limit // 2**16 + 1):
            yield b"x" * 2**16

    with service.http(key) as http:
        answer = http.post(
            "/v1/files", content=chunks(), headers={"content-type": "multipart/form-data; boundary=b"}
        )
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "file_too_large"
    assert set(service.settings.files_dir.iterdir()) == before
    assert not list(service.settings.incoming_dir.rglob(".upload-*"))
    assert upload(client, b"x" * limit, purpose="user_data")


PART = b'--b\r\ncontent-disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
PURPOSE = PART % (b"purpose", b"", b"fine-tune")
FILE = PART % (b"file", b'; filename="a.jsonl"', b"{}")
END = b"--b--\r\n"


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        (PURPOSE + END, "'file'", "file"),
        (FILE + END, "'purpose'", "purpose"),
        (PURPOSE + FILE, "ends before", None),
        (PURPOSE + FILE + FILE + END, "several", "file"),
        (PURPOSE + PURPOSE + FILE + END, "purpose once", "purpose"),
        (PART % (b"", b"", b"red") + END, "a part without one", None),
        (PART % (b"colour", b"", b"red") + END, "'colour'", "colour"),
        (PART % (b"purpose", b"", b"x" * 2000) + END, "at most 1024 bytes", "purpose"),
        (b"nothing like it", "not valid multipart", None),
        (b"", "ends before", None),
    ],
)
def test_a_broken_form_is_refused(
    service: Running, key: str, body: bytes, message: str, param: str | None
) -> None:
    with service.http(key) as http:
        answer = http.post(
            "/v1/files", content=body, headers={"content-type": "multipart/form-data; boundary=b"}
        )
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == param
    assert not list(service.settings.incoming_dir.rglob(".upload-*"))


def test_a_body_that_is_no_form_is_refused(service: Running, key: str) -> None:
    with service.http(key) as http:
        answer = http.post("/v1/files", json={"purpose": "fine-tune"})
    assert answer.status_code == 400
    assert "multipart/form-data" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["files", "uploads/{}/parts"])
def test_a_boundary_that_is_too_long_is_refused(
    service: Running, client: OpenAI, key: str, path: str
) -> None:
    opened = client.uploads.create(bytes=1, filename="a", mime_type="x/y", purpose="fine-tune")
    headers = {"content-type": f"multipart/form-data; boundary={'b' * 500}"}
    with service.http(key) as http:
        answer = http.post(f"/v1/{path.format(opened.id)}", content=b"--b--", headers=headers)
    assert answer.status_code == 400
    assert "not valid multipart/form-data: Boundary length 500" in answer.json()["error"]["message"]
    assert not list(service.settings.incoming_dir.rglob(".upload-*"))


def test_an_empty_file_can_be_uploaded(client: OpenAI) -> None:
    assert client.files.create(file=("empty", b""), purpose="user_data").bytes == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9, "the file is a PNG picture: expected JSON Lines"),
        (
            b"asdf;;,;\n;,;;;qwe\n",
            "the first 2 rows cannot be read; line 1: expected one JSON object per line",
        ),
        (gzip.compress(pairs(3), mtime=0)[:-12], "its gzip data is damaged or cut off"),
    ],
    ids=["empty", "picture", "nonsense", "gzip that is cut off"],
)
def test_a_file_in_which_no_job_could_read_a_row_is_refused_and_not_kept(
    service: Running, client: OpenAI, content: bytes, words: str
) -> None:
    before = set(service.settings.files_dir.iterdir())
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=("/home/me/rows.jsonl", content), purpose="fine-tune")
    assert (refused.value.param, refused.value.code) == ("file", "invalid_file")
    assert "The file 'rows.jsonl' cannot be used for fine-tuning: " in refused.value.message
    assert words in refused.value.message
    assert client.files.list().data == []
    assert set(service.settings.files_dir.iterdir()) == before
    assert client.files.create(file=("rows.jsonl", content), purpose="user_data").bytes == len(content)


def test_the_file_is_read_beside_the_event_loop(client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def noted(path: Path, **_: int) -> None:
        with contextlib.suppress(RuntimeError):
            seen.append(asyncio.get_running_loop())
        seen.append(path)

    monkeypatch.setattr("alignkit_server.files.service.require_rows", noted)
    upload(client)
    assert [type(one) for one in seen] == [type(Path())]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\data\\pairs.jsonl", "pairs.jsonl"),
        ("a\r\nset-cookie: b", "aset-cookie: b"),
        ("..", "file"),
        ("", "file"),
        ("é" * 300, "é" * 255),
    ],
)
def test_filenames_are_made_safe(given: str, kept: str) -> None:
    assert safe_filename(given) == kept


def test_a_download_is_never_taken_for_a_page(client: OpenAI, service: Running, key: str) -> None:
    file_id = upload(client, b"<script>", name='été "1".html', purpose="user_data")
    with service.http(key) as http:
        answer = http.get(f"/v1/files/{file_id}/content")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")


def test_a_file_of_an_unfinished_job_cannot_be_deleted(service: Running, client: OpenAI) -> None:
    training, validation = upload(client), upload(client)
    job = create_job(client, training_file=training, validation_file=validation)
    for file_id in (training, validation):
        with pytest.raises(openai.ConflictError, match=f"used by the job {job.id}") as refused:
            client.files.delete(file_id)
        assert refused.value.response.headers["x-should-retry"] == "false"
    client.fine_tuning.jobs.cancel(job.id)
    assert client.files.delete(training).deleted
    assert client.files.delete(validation).deleted


def test_an_upload_that_breaks_off_leaves_nothing(service: Running, key: str) -> None:
    def chunks() -> Any:
        yield PURPOSE
        raise RuntimeError("the client goes away")

    headers = {"content-type": "multipart/form-data; boundary=b"}
    with service.http(key) as http, pytest.raises(RuntimeError):
        http.post("/v1/files", content=chunks(), headers=headers)
    wait_until(lambda: not list(service.settings.incoming_dir.rglob(".upload-*")))
    with service.http(key) as http:
        assert http.get("/v1/files").json()["data"] == []
