"""Connections of people without a key, or without patience, leave the service to the others."""

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from alignkit_server.connections import MAX_HEAD_BYTES
from tests.server.support import Running, serve, wait_until

PLACES = 20


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service of few connections and little patience."""
    bounds = {"max_connections": PLACES, "request_head_seconds": 1.0, "stall_seconds": 1.0}
    with serve(tmp_path_factory.mktemp("home"), **bounds) as running:
        yield running


@contextlib.contextmanager
def connected(service: Running, begin: bytes = b"") -> Iterator[socket.socket]:
    address = urlsplit(service.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(begin)
        yield connection


def ended(connection: socket.socket, within: float = 8.0) -> bool:
    """Whether the service ends the connection in time."""
    connection.settimeout(within)
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def healthy(service: Running) -> bool:
    return httpx.get(f"{service.url}/healthz", timeout=60, trust_env=False).status_code == 200


@pytest.mark.parametrize("begin", [b"", b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: "])
def test_idle_connections_give_way_to_those_that_ask(small: Running, begin: bytes) -> None:
    with contextlib.ExitStack() as many:
        for _ in range(3 * PLACES):
            many.enter_context(connected(small, begin))
        assert healthy(small)


@pytest.mark.parametrize("begin", [b"", b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: "])
def test_a_connection_without_a_request_is_ended(small: Running, begin: bytes) -> None:
    with connected(small, begin) as connection:
        assert ended(connection)


def drip(connection: socket.socket) -> None:
    """Send a header line every tenth of a second, for a minute or until the other side has had enough."""
    for _ in range(600):
        connection.sendall(b"a: b\r\n")
        time.sleep(0.1)


def test_headers_that_drip_are_ended_all_the_same(small: Running) -> None:
    with connected(small, b"GET / HTTP/1.1\r\n") as connection, pytest.raises(ConnectionError):
        drip(connection)


@pytest.mark.parametrize(
    "unit", [b"x" * 2**16, b"x: y\r\n" * 10_000], ids=["one long header", "many headers"]
)
def test_no_more_headers_are_read_than_a_request_may_have(small: Running, unit: bytes) -> None:
    sent = 0
    with connected(small, b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: y") as connection:
        with contextlib.suppress(OSError):
            while sent < 64 * 2**20:
                connection.sendall(unit)
                sent += len(unit)
        assert ended(connection)
    assert sent < 16 * 2**20  # what the kernel's buffers hold


def test_headers_of_a_kind_that_clients_send_are_taken(small: Running) -> None:
    headers = {"x-padding": "x" * (MAX_HEAD_BYTES - 1000)}
    assert httpx.get(f"{small.url}/healthz", headers=headers, trust_env=False).status_code == 200


def test_a_body_that_does_not_come_ends_the_connection(small: Running) -> None:
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {small.new_key('mine')}\r\n"
        "content-type: multipart/form-data; boundary=b\r\ncontent-length: 1000\r\n\r\n--b\r\n"
    )
    with connected(small, head.encode()) as connection:
        assert ended(connection)


def test_an_answer_that_nobody_reads_ends_the_connection(small: Running, tmp_path: Path) -> None:
    key = small.new_key("mine")
    with small.http(key) as http:
        files = {"file": ("a", b"x" * (9 * 2**20))}
        file_id = http.post("/v1/files", files=files, data={"purpose": "user_data"}).json()["id"]
    head = f"GET /v1/files/{file_id}/content HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n"
    address = urlsplit(small.url)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((address.hostname, address.port))
        connection.sendall(head.encode())
        time.sleep(2.5)
        connection.settimeout(10)
        received = 0
        with contextlib.suppress(ConnectionError):
            while chunk := connection.recv(65536):
                received += len(chunk)
    assert received < 9 * 2**20


def test_a_refused_body_that_still_comes_gets_its_answer_and_the_connection_goes_on(small: Running) -> None:
    """A client without a key that sends its body before it reads."""
    head = b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 300000\r\n\r\n"
    with connected(small, head) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")
        connection.sendall(b"x" * 300_000 + b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_full_service_says_so_and_is_itself_again_when_one_leaves(tmp_path: Path) -> None:
    """All places are held by requests that are being answered."""
    with serve(tmp_path, max_connections=3) as full, contextlib.ExitStack() as many:
        head = (
            f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {full.new_key('mine')}\r\n"
            "content-type: multipart/form-data; boundary=b\r\ncontent-length: 1000\r\n\r\n--b\r\n"
        )
        for _ in range(3):
            many.enter_context(connected(full, head.encode()))
        wait_until(lambda: not healthy(full))
        many.close()
        wait_until(lambda: healthy(full))
