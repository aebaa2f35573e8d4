"""What one abusive tenant of each kind costs an ordinary one: `python benchmarks/abuse.py URL ADMIN_KEY`.

Against a running service, which needs ALIGNKIT_WEBHOOK_PRIVATE_TARGETS=true for the webhooks. For each kind: the
ordinary tenant's p99 of reading with the abuse, as a multiple of what it was just before, and what failed of its own.
"""

import argparse
import json
import socket
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import httpx

SECONDS = 10.0
EVERY = 0.05
JSON = {"content-type": "application/json"}
Abuse = Callable[["Tenant", threading.Event], None]


class Tenant:
    """A project of its own, and its key."""

    def __init__(self, url: str, admin: str, name: str) -> None:
        self.url = url
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {admin}"}) as http:
            made = http.post("/v1/organization/projects", json={"name": name}).raise_for_status().json()
            keys = f"/v1/organization/projects/{made['id']}/api_keys"
            self.key = http.post(keys, json={"name": name}).raise_for_status().json()["value"]
        self.http = httpx.Client(
            base_url=url, headers={"authorization": f"Bearer {self.key}"}, timeout=30, trust_env=False
        )


def large_json(tenant: Tenant, over: threading.Event) -> None:
    """Bodies of millions of values."""
    bodies = (
        ("/v1/webhook_endpoints", b'{"event_types": [' + b'"a",' * 900_000 + b'"a"]}'),
        ("/v1/fine_tuning/jobs", json.dumps({f"k{n}": 0 for n in range(290_000)}).encode()),
        ("/v1/chat/completions", b'{"messages": [' + b"[]," * 1_000_000 + b"[]]}"),
    )
    while not over.is_set():
        for path, body in bodies:
            with suppress(httpx.HTTPError):
                tenant.http.post(path, content=body, headers=JSON)


def idle_connections(tenant: Tenant, over: threading.Event) -> None:
    """Connections without a request."""
    address = urlsplit(tenant.url)
    with ExitStack() as many:
        for _ in range(900):
            with suppress(OSError):
                many.enter_context(
                    socket.create_connection((address.hostname, address.port or 80), timeout=5)
                )
        over.wait()


def hanging_webhooks(tenant: Tenant, over: threading.Event) -> None:
    """Samples to a peer that never ends its answer."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as peer:
        url = f"http://127.0.0.1:{peer.getsockname()[1]}/"
        event = "fine_tuning.job.succeeded"
        asked = {"name": "a", "url": url, "event_types": [event]}
        made = tenant.http.post("/v1/webhook_endpoints", json=asked)
        if made.is_error:
            print(f"  webhooks were not tried: {made.text[:100]}")
            return
        path = f"/v1/webhook_endpoints/{made.json()['id']}/test"

        def ask() -> None:
            while not over.is_set():
                with suppress(httpx.HTTPError):
                    tenant.http.post(path, json={"event_type": event})

        with ThreadPoolExecutor(45) as pool:
            for _ in range(45):
                pool.submit(ask)


def many_requests(tenant: Tenant, over: threading.Event) -> None:
    """As many requests at once as a client can have."""

    def ask() -> None:
        while not over.is_set():
            with suppress(httpx.HTTPError):
                tenant.http.get("/v1/files")

    with ThreadPoolExecutor(50) as pool:
        for _ in range(50):
            pool.submit(ask)


KINDS: dict[str, Abuse] = {
    "large JSON": large_json,
    "idle connections": idle_connections,
    "hanging webhooks": hanging_webhooks,
    "many requests": many_requests,
}


def ordinary(tenant: Tenant) -> tuple[float, int]:
    """(p99 in milliseconds, requests that failed) of an ordinary tenant who reads."""
    times, failed, end = [], 0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        start = time.monotonic()
        try:
            failed += tenant.http.get("/v1/models").is_error
        except httpx.HTTPError:
            failed += 1
        times.append(1000 * (time.monotonic() - start))
        time.sleep(EVERY)
    return statistics.quantiles(times, n=100)[98], failed


def main() -> None:
    """Measure every kind in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="such as http://127.0.0.1:8000")
    parser.add_argument("admin_key")
    parser.add_argument("--only", choices=KINDS, help="one kind")
    options = parser.parse_args()
    run = f"{time.time():.0f}"
    mine = Tenant(options.url, options.admin_key, f"ordinary-{run}")
    results = {}
    for number, (name, abuse) in enumerate(KINDS.items()):
        if options.only not in {None, name}:
            continue
        abuser, over = Tenant(options.url, options.admin_key, f"abusive-{number}-{run}"), threading.Event()
        quiet, _ = ordinary(mine)
        thread = threading.Thread(target=abuse, args=(abuser, over))
        thread.start()
        try:
            busy, failed = ordinary(mine)
        finally:
            over.set()
            thread.join()
        results[name] = {
            "quiet_p99_ms": round(quiet, 1),
            "p99_ms": round(busy, 1),
            "ratio": round(busy / quiet, 2),
            "failed": failed,
        }
        print(f"{name}: {results[name]}", flush=True)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
