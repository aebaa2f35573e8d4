"""The chat pass-through beside the engine itself: one request at a time, and many streams at once.

Measured over a stand-in that answers at once, which shows the service's own cost bare, and over vLLM with
SmolLM2-135M-Instruct, which shows how much of it a user meets.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from alignkit.models.importing import import_model
from alignkit_server.engines.process import Identity
from tests.e2e.service import Service

STREAMS = 16
ROUNDS = 5
MODEL = "smollm2-135m-instruct"
Figures = dict[str, float]
Clients = dict[str, httpx.Client]


def over_stand_in(home: Path, through: httpx.Client, requests: int) -> Figures:
    """Over the tests' engine, which the service at `home` starts."""
    single: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "echo"}]}
    streamed = {**single, "messages": [{"role": "user", "content": "stream"}], "stream": True}
    return named("stand-in", measured(home, through, (single, streamed), requests))


def over_vllm(requests: int) -> Figures:
    """Over vLLM, with a service of its own."""
    with smollm2() as service:
        single: dict[str, Any] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Why is the sky blue?"}],
            "temperature": 0,
            "max_tokens": 1,
        }
        streamed = {**single, "max_tokens": 32, "ignore_eos": True, "stream": True}
        key = (service.home / "first-key").read_text().strip()
        figures = measured(service.home, client(service.url, key), (single, streamed), requests)
    return named("vLLM", figures)


def measured(
    home: Path, through: httpx.Client, bodies: tuple[dict[str, Any], dict[str, Any]], requests: int
) -> Figures:
    """Both ways in turns, so that what else the machine does hits both. `bodies`: asked alone, and streamed."""
    single, streamed = bodies
    ask(through, single)  # starts the engine
    identity = next(filter(None, map(Identity.load, home.glob("engines/*.json"))))
    clients = {"directly": client(f"http://127.0.0.1:{identity.port}"), "through": through}
    alone: dict[str, list[float]] = {"directly": [], "through": []}
    for turn in range(requests):
        for name in sorted(clients, reverse=turn % 2 == 1):  # neither is always the one that asks second
            alone[name].append(timed(lambda way=clients[name]: ask(way, single)))  # type: ignore[misc]
    at_once: dict[str, list[float]] = {"directly": [], "through": []}
    for turn in range(2 * ROUNDS):
        name = ("directly", "through")[turn % 2]
        at_once[name].append(timed(lambda way=clients[name]: streams(way, streamed, 4 * STREAMS)))  # type: ignore[misc]
    rates = {name: 4 * STREAMS / median(seconds) for name, seconds in at_once.items()}
    return {
        "chat directly, p50 ms": 1e3 * median(alone["directly"]),
        "chat added by the service, p50 ms": 1e3 * (median(alone["through"]) - median(alone["directly"])),
        f"{STREAMS} streams directly, answers/s": rates["directly"],
        f"{STREAMS} streams through the service, share": rates["through"] / rates["directly"],
    }


def named(engine: str, figures: Figures) -> Figures:
    """The figures under that engine's name."""
    return {f"{engine}: {name}": value for name, value in figures.items()}


def streams(way: httpx.Client, body: dict[str, Any], count: int) -> None:
    """So many answers, `STREAMS` at a time."""
    with ThreadPoolExecutor(STREAMS) as pool:
        list(pool.map(lambda _: ask(way, body), range(count)))


def ask(way: httpx.Client, body: dict[str, Any]) -> None:
    """One chat request, read to its end."""
    way.post("/v1/chat/completions", json=body).raise_for_status()


def client(url: str, key: str = "") -> httpx.Client:
    """Plain HTTP, with a key where one is needed."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=url, headers=headers, timeout=300, trust_env=False)


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


@contextmanager
def smollm2() -> Iterator[Service]:
    """A running service whose base model is SmolLM2."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        service = Service(Path(folder) / "home")
        import_model(MODEL, service.home / "models", MODEL, report=lambda _: None)
        service.start()
        try:
            yield service
        finally:
            service.stop()
