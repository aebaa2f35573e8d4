"""Bodies at the edge: their size, their depth, and that whatever comes is answered."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alignkit_server.errors import ApiError
from alignkit_server.limits.body import MAX_DEPTH, refuse_deep
from tests.server.support import BASE_MODEL, Running, serve

JOBS = "/v1/fine_tuning/jobs"
LIMIT = 2**20
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service that takes requests of a mebibyte."""
    with serve(tmp_path_factory.mktemp("home"), max_request_bytes=LIMIT) as running:
        yield running


@pytest.fixture
def http(narrow: Running) -> Iterator[httpx.Client]:
    with narrow.http(narrow.new_key("mine")) as http:
        yield http


def test_metadata_of_two_gigabytes_is_refused_before_it_comes(narrow: Running) -> None:
    """The client says how much it is going to send, sends a little and gets its answer when it hangs up."""
    address = urlsplit(narrow.url)
    head = (
        f"POST {JOBS} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {narrow.new_key('mine')}\r\n"
        f"content-type: application/json\r\ncontent-length: {2 * 2**30}\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(head.encode() + b'{"metadata": {"k": "')
        for _ in range(70):
            connection.sendall(b"x" * 2**20)
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"request_too_large" in answer


@pytest.mark.parametrize("path", [JOBS, "/v1/organization/projects", "/v1/chat/completions", "/v1/unknown"])
@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=b"])
def test_a_body_over_the_limit_is_refused_whatever_it_says_it_is(
    http: httpx.Client, path: str, kind: str
) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(LIMIT // 2**16 + 1):
            yield b"x" * 2**16

    for content in (b"x" * (LIMIT + 1), chunks()):  # with a length, and without
        answer = http.post(path, content=content, headers={"content-type": kind})
        assert answer.status_code == 413, answer.text
        assert answer.json()["error"]["code"] == "request_too_large"
        assert "1,048,576 bytes" in answer.json()["error"]["message"]


def test_a_body_at_the_limit_is_read_and_an_upload_has_its_own(http: httpx.Client) -> None:
    body = json.dumps({"model": BASE_MODEL, "training_file": "x", "metadata": {"k": ""}}).encode()
    full = body.replace(b'""', b'"' + b"v" * (LIMIT - len(body)) + b'"')
    answer = http.post(JOBS, content=full, headers=JSON)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "metadata.k")
    files = {"file": ("a", b"x" * (2 * LIMIT))}
    assert http.post("/v1/files", files=files, data={"purpose": "user_data"}).status_code == 200


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]", inner: bytes = b"") -> bytes:
    return opening * depth + inner + closing * depth


@pytest.mark.parametrize("depth", [MAX_DEPTH - 3, MAX_DEPTH + 1, 500, 990, 100_000])
@pytest.mark.parametrize(
    "field", ["metadata", "hyperparameters", "integrations", "method", "model", "colour"]
)
def test_json_of_any_depth_is_refused_and_breaks_nothing(http: httpx.Client, field: str, depth: int) -> None:
    for deep in (nested(depth), nested(depth, b'{"a":', b"}", b"1")):
        body = b'{"model": "m", "training_file": "f", "%s": %s}' % (field.encode(), deep)
        answer = http.post(JOBS, content=body, headers=JSON)
        assert answer.status_code in {400, 404}, answer.text  # there is no model m either
        message = answer.json()["error"]["message"]
        assert ("nested too deeply" in message) == (depth >= MAX_DEPTH)
        assert len(message) < 1000


def test_a_method_s_deep_hyperparameters_are_refused(http: httpx.Client) -> None:
    files = {"file": ("a", b"{}")}
    file_id = http.post("/v1/files", files=files, data={"purpose": "fine-tune"}).json()["id"]
    deep = nested(MAX_DEPTH - 4).decode()
    text = (
        '{"model": "%s", "training_file": "%s", "method": '
        '{"type": "f_dpo", "f_dpo": {"hyperparameters": {"beta": %s}}}}'
    )
    answer = http.post(JOBS, content=text % (BASE_MODEL, file_id, deep), headers=JSON)
    assert answer.status_code == 400, answer.text


def depth_of(value: Any) -> int:
    """Levels of objects and arrays."""
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


Scalar = st.none() | st.integers() | st.text(alphabet='[]{}"\\aé', max_size=6)
Json = st.recursive(
    Scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(Scalar.map(str), inner, max_size=3)
)


@given(value=Json, around=st.integers(0, 2 * MAX_DEPTH), escaped=st.booleans())
@example(value=['"[', "\\", "]]]"], around=MAX_DEPTH - 1, escaped=False)
def test_depth_is_that_of_the_json_not_of_its_text(value: Any, around: int, escaped: bool) -> None:
    for _ in range(around):
        value = [value, '[[{{\\"']
    body = json.dumps(value, ensure_ascii=escaped).encode()
    if depth_of(value) > MAX_DEPTH:
        with pytest.raises(ApiError, match="nested too deeply"):
            refuse_deep(body)
    else:
        refuse_deep(body)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_json_are_left_to_the_parser(body: bytes) -> None:
    refuse_deep(body)


@pytest.mark.parametrize("unit", [b'"', b'\\"', b'"\\', b"[", b"]", b'["', b"{}", b"[" * 64 + b"]" * 64])
def test_reading_takes_time_in_proportion(unit: bytes) -> None:
    """A scan that goes back would take hours."""
    text = unit * (4 * 2**20 // len(unit))
    start = time.monotonic()
    for body in (text, b'["' + text, b"[]" * 100 + text):
        with contextlib.suppress(ApiError):
            refuse_deep(body)
    assert time.monotonic() - start < 10
