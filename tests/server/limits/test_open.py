"""Open requests of one project are limited, and another project's are not touched by it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from alignkit_server.errors import ApiError
from alignkit_server.limits.open import Held
from tests.server.support import NoEngines, serve, wait_until


class SlowEngines(NoEngines):
    """An engine whose start takes until the test lets it go."""

    def __init__(self) -> None:
        self.asked, self.gate = 0, threading.Event()

    def endpoint(self, base_model: str, rank: int = 0) -> str:
        self.asked += 1
        self.gate.wait(60)
        return super().endpoint(base_model)

    def hold(self, base_model: str, project_id: str = "") -> None:
        self.asked += 1


def test_beyond_the_limit_a_request_is_refused_and_another_project_s_is_not(tmp_path: Path) -> None:
    engines = SlowEngines()
    body = {"model": "tiny-llama", "messages": []}
    with (
        serve(tmp_path, engines=engines, limits={"requests_open": 3}) as service,
        ThreadPoolExecutor(3) as pool,
    ):
        key, other = service.new_key("a"), service.new_key("b")
        with service.http(key) as mine, service.http(other) as others:
            for _ in range(3):
                pool.submit(mine.post, "/v1/chat/completions", json=body)
            wait_until(lambda: engines.asked >= 4)  # three held, one start
            refused = mine.get("/v1/models")
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert refused.json()["error"]["code"] == "rate_limit_exceeded"
            assert others.get("/v1/models").status_code == 200
            engines.gate.set()
            wait_until(lambda: mine.get("/v1/models").status_code == 200)


def test_what_ends_is_not_held_any_more() -> None:
    held = Held()
    for _ in range(3):
        with (
            held.one("a", 1, "things"),
            pytest.raises(ApiError, match="Too many things"),
            held.one("a", 1, "things"),
        ):
            pass
    with held.one("a", None, "things"), held.one("a", None, "things"):
        pass
