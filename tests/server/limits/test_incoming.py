"""What a project is sending counts towards its quota before it is there: its disk is bounded at every moment."""

import socket
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from openai import OpenAI

from alignkit_server.files import upload as receiving
from alignkit_server.limits.incoming import folder_of, incoming
from tests.server.limits.test_quotas import limit, refused  # noqa: F401 - a fixture
from tests.server.support import Running, upload, wait_until

MEGABYTE = 10**6
START = (
    b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
    b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
)
END = b"\r\n--b--\r\n"
FORM = {"content-type": "multipart/form-data; boundary=b"}
SetLimits = Callable[..., None]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what is written of uploads."""
    sizes: list[int] = []
    real = receiving.write_all

    def write(descriptor: int, data: bytes) -> None:
        sizes.append(len(data))
        real(descriptor, data)

    monkeypatch.setattr(receiving, "write_all", write)
    return sizes


def test_what_declares_too_much_is_refused_before_a_byte_is_kept(
    client: OpenAI,
    limit: SetLimits,  # noqa: F811
    written: list[int],
) -> None:
    limit(file_bytes=MEGABYTE)
    message = refused(lambda: upload(client, b"x" * (2 * MEGABYTE), purpose="user_data"))
    assert "are limited to 1,000,000 bytes, use 0" in message
    assert written == []


def test_what_declares_nothing_is_refused_as_soon_as_it_is_too_much(
    key: str,
    service: Running,
    limit: SetLimits,  # noqa: F811
    written: list[int],
) -> None:
    limit(file_bytes=3 * MEGABYTE)

    def chunks() -> Iterator[bytes]:
        yield START
        for _ in range(80):
            yield b"x" * 100_000

    with service.http(key) as http:
        answer = http.post("/v1/files", content=chunks(), headers=FORM)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "quota_exceeded")
    assert 2 * MEGABYTE < sum(written) < 3 * MEGABYTE + receiving.OVERHEAD_BYTES


def test_two_that_fit_alone_are_not_received_at_once(
    client: OpenAI,
    key: str,
    service: Running,
    limit: SetLimits,  # noqa: F811
) -> None:
    limit(file_bytes=MEGABYTE)
    with begun(service, key, 600_000) as first:
        wait_until(lambda: arriving(service) >= 600_000 - receiving.OVERHEAD_BYTES)
        refused(lambda: upload(client, b"x" * 600_000, purpose="user_data"))
        refused(
            lambda: client.uploads.create(bytes=600_000, filename="a", mime_type="a/b", purpose="user_data")
        )
        assert upload(client, b"x" * 300_000, purpose="user_data")
        first.close()
        wait_until(lambda: arriving(service) == 0)
    assert upload(client, b"x" * 600_000, purpose="user_data")


def test_what_was_given_up_meanwhile_is_refused(key: str, service: Running) -> None:
    body = START + b"x" * 100 + END
    with begun(service, key, len(body)) as sending:
        wait_until(lambda: list(service.settings.incoming_dir.glob("*/*")))
        for path in service.settings.incoming_dir.glob("*/*"):
            path.unlink()
        sending.sendall(body)
        answer = sending.recv(65536).decode()
    assert answer.startswith("HTTP/1.1 400")
    assert "upload_abandoned" in answer


def test_a_projects_own_file_and_anothers_do_not_count(service: Running) -> None:
    folder = folder_of(service.settings, "proj-a")
    folder.mkdir(parents=True)
    for name, size in ((".upload-1", 5), (".upload-2", 7), (".join-1", 11)):
        (folder / name).write_bytes(b"x" * size)
    assert incoming(service.settings, "proj-a") == (12, 11)
    assert incoming(service.settings, "proj-a", folder / ".upload-2") == (5, 11)
    assert incoming(service.settings, "proj-b") == (0, 0)
    for path in folder.iterdir():
        path.unlink()


def begun(service: Running, key: str, size: int) -> socket.socket:
    """A connection that has announced a file upload, and sent nothing of it."""
    address = urlsplit(service.url)
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {size}\r\n"
        f"content-type: {FORM['content-type']}\r\nconnection: close\r\n\r\n"
    )
    sending = socket.create_connection((address.hostname, address.port), timeout=30)
    sending.sendall(head.encode())
    return sending


def arriving(service: Running) -> int:
    return sum(path.stat().st_size for path in service.settings.incoming_dir.rglob(".upload-*"))
