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
from alignkit_server.limits.body import FORM, MAX_DEPTH, PROMPT, SMALL_BYTES, Counts, refuse_shape
from tests.server.support import BASE_MODEL, Running, pairs, serve

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


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        (JOBS, LIMIT),
        ("/v1/chat/completions", LIMIT),
        ("/v1/uploads/u/complete", LIMIT),
        ("/v1/organization/projects", SMALL_BYTES),
        ("/v1/webhook_endpoints", SMALL_BYTES),
        ("/v1/unknown", SMALL_BYTES),
    ],
)
@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=b"])
def test_a_body_over_the_limit_is_refused_whatever_it_says_it_is(
    http: httpx.Client, path: str, limit: int, kind: str
) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(limit // 2**16 + 1):
            yield b"x" * 2**16

    for content in (b"x" * (limit + 1), chunks()):  # with a length, and without
        answer = http.post(path, content=content, headers={"content-type": kind})
        assert answer.status_code == 413, answer.text
        assert answer.json()["error"]["code"] == "request_too_large"
        assert f"{limit:,} bytes" in answer.json()["error"]["message"]


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
            refuse_shape(body, PROMPT)
    else:
        refuse_shape(body, PROMPT)


def values_of(value: Any) -> int:
    """Members of objects and arrays, after the first of each; no more than the separators between them."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return max(0, len(inner) - 1) + sum(map(values_of, inner))


@given(value=Json, escaped=st.booleans())
def test_values_are_those_of_the_json_not_of_its_text(value: Any, escaped: bool) -> None:
    value = [value, ',,[,{"\\', *["x,"] * 70]
    body = json.dumps(value, ensure_ascii=escaped).encode()
    count = values_of(value) + 1
    refuse_shape(body, Counts(count, 1000))
    with pytest.raises(ApiError, match="too complex"):
        refuse_shape(body, Counts(count - 1, 1000))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_only_utf_8_is_taken_since_only_that_is_counted(encoding: str) -> None:
    with pytest.raises(ApiError, match="UTF-8"):
        refuse_shape(json.dumps({"a": 1}).encode(encoding), FORM)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_json_are_left_to_the_parser(body: bytes) -> None:
    refuse_shape(body.replace(b"\x00", b""), FORM)


@pytest.mark.parametrize("unit", [b'"', b'\\"', b'"\\', b"[", b"]", b'["', b"{}", b"[" * 64 + b"]" * 64])
def test_reading_takes_time_in_proportion(unit: bytes) -> None:
    """A scan that goes back would take hours."""
    text = unit * (4 * 2**20 // len(unit))
    start = time.process_time()
    for body in (text, b'["' + text, b"[]" * 100 + text):
        with contextlib.suppress(ApiError):
            refuse_shape(body, PROMPT)
    assert time.process_time() - start < 10


MANY: dict[str, tuple[str, bytes]] = {
    "event types": ("/v1/webhook_endpoints", b'{"event_types": [' + b'"a",' * 15_000 + b'"a"]}'),
    "unknown keys": (JOBS, json.dumps({f"k{n}": 0 for n in range(60_000)}).encode()),
    "labels": (JOBS, json.dumps({"metadata": {f"k{n}": 0 for n in range(60_000)}}).encode()),
    "messages": ("/v1/chat/completions", b'{"messages": [' + b"[]," * 300_000 + b"[]]}"),
    "messages without commas": ("/v1/chat/completions", b'{"messages": ' + b"[[]]" * 200_000 + b"}"),
    "strings": ("/v1/chat/completions", b'{"messages": [' + b'"",' * 300_000 + b'""]}'),
    "hyperparameters": (
        JOBS,
        json.dumps(
            {"method": {"type": "f_dpo", "f_dpo": {"hyperparameters": {f"k{n}": 0 for n in range(60_000)}}}}
        ).encode(),
    ),
}


@pytest.mark.parametrize("name", MANY)
def test_a_body_of_too_many_values_is_refused_before_it_is_parsed(http: httpx.Client, name: str) -> None:
    path, body = MANY[name]
    answer = http.post(path, content=body, headers=JSON)
    assert answer.status_code == 400, answer.text
    assert "The body is too complex: expected at most " in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (JOBS, {f"k{n}": 0 for n in range(5000)}),
        (JOBS, {"model": "m", "training_file": "f", "metadata": {f"k{n}": 0 for n in range(5000)}}),
        ("/v1/webhook_endpoints", {"name": "n", "url": "u", "event_types": ["a"] * 5000}),
        (JOBS, {"k" * 100_000 + str(n): 0 for n in range(5)}),
        (JOBS, {"model": ["m" * 500_000], "training_file": {"f": ["x"] * 10_000}}),
    ],
)
def test_a_refusal_does_not_grow_with_the_request(http: httpx.Client, path: str, body: Any) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert len(answer.content) < 10_000
    assert len(message.split("\n")) <= 21


def test_the_first_refused_fields_are_told_and_how_many_are_left(http: httpx.Client) -> None:
    answer = http.post(JOBS, json={"model": "m", "training_file": "f"} | {f"k{n}": 0 for n in range(25)})
    lines = answer.json()["error"]["message"].split("\n")
    assert lines == [*(f"Unknown parameter: 'k{n}'." for n in range(20)), "… and 5 more."]


def test_unknown_hyperparameters_are_told_to_a_bound(http: httpx.Client) -> None:
    file_id = http.post("/v1/files", files={"file": ("a", pairs())}, data={"purpose": "fine-tune"}).json()[
        "id"
    ]
    given = {f"k{n}": 0 for n in range(5000)}
    method = {"type": "f_dpo", "f_dpo": {"hyperparameters": given}}
    answer = http.post(JOBS, json={"model": BASE_MODEL, "training_file": file_id, "method": method})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].endswith("… and 4,980 more.")
