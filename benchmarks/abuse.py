"""What one abusive tenant of each kind costs an ordinary one: `python -m benchmarks.abuse URL KEY --model NAME`.

Against a running service, with an admin's key; it needs ALIGNKIT_WEBHOOK_PRIVATE_TARGETS=true for the webhooks. For
each kind: p50 and p99 of the ordinary tenant's reading, and of its chats where a model is named, with the abuse and
just before it, and what failed of its own. The kinds that ask an engine or create jobs need `--model`.
"""

import argparse
import gzip
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from alignkit.hardware import cpu_name

SECONDS = 10.0
EVERY = 0.05
UNDER_WAY = 2.0
"""Seconds until an abuse has begun."""
JSON = {"content-type": "application/json"}
Abuse = Callable[["Tenant", threading.Event], None]


class Tenant:
    """A project of its own, and its key."""

    def __init__(self, url: str, key: str, model: str | None = None) -> None:
        self.url, self.key, self.model = url, key, model
        self.http = httpx.Client(
            base_url=url, headers={"authorization": f"Bearer {self.key}"}, timeout=30, trust_env=False
        )

    @classmethod
    def made(cls, url: str, admin: str, name: str, model: str | None, **limits: int) -> "Tenant":
        """A new one, with limits of its own."""
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {admin}"}) as http:
            made = http.post("/v1/organization/projects", json={"name": name}).raise_for_status().json()
            path = f"/v1/organization/projects/{made['id']}"
            http.post(path, json={"limits": limits}).raise_for_status()
            keys = f"{path}/api_keys"
            return cls(url, http.post(keys, json={"name": name}).raise_for_status().json()["value"], model)

    def upload(self, content: bytes) -> str:
        """A new file for training; its id."""
        files = {"file": ("rows.jsonl", content)}
        made = self.http.post("/v1/files", files=files, data={"purpose": "fine-tune"})
        return str(made.raise_for_status().json()["id"])

    def create_job(self) -> str | None:
        """A supervised job on a few rows; None where it is refused."""
        row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
        file_id = self.upload((json.dumps(row) + "\n").encode() * 8)
        made = self.http.post("/v1/fine_tuning/jobs", json={"model": self.model, "training_file": file_id})
        if made.is_error:
            print(f"  no job: {made.text[:200]}")
            return None
        return str(made.json()["id"])

    def chat(self, **options: object) -> bool:
        """Whether a short chat was answered; one that hangs counts as not answered."""
        message = {"role": "user", "content": "Say something."}
        try:
            body = {"model": self.model, "messages": [message], **options}
            return self.http.post("/v1/chat/completions", json=body).is_success
        except httpx.HTTPError:
            return False


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


def event_streams(tenant: "Tenant", over: threading.Event) -> None:
    """Hundreds of listeners to one job."""
    job = tenant.create_job()
    if job is None:
        return

    def listen() -> None:
        while not over.is_set():
            with (
                suppress(httpx.HTTPError),
                tenant.http.stream(
                    "GET", f"/v1/fine_tuning/jobs/{job}/events", params={"stream": True}
                ) as answer,
            ):
                for _ in answer.iter_raw():
                    if over.is_set():
                        break
            over.wait(0.2)

    in_threads(300, listen)


def bombs(tenant: "Tenant", over: threading.Event) -> None:
    """Previews and estimates of a small gzip of very long rows, hung up on after a second."""
    message = [{"role": "user", "content": "a b " * 2_000_000}]
    row = {"messages": [*message, {"role": "assistant", "content": "c"}]}
    file_id = tenant.upload(gzip.compress((json.dumps(row) + "\n").encode() * 20))
    body = {"model": tenant.model, "training_file": file_id}

    def ask() -> None:
        while not over.is_set():
            for path in ("preview", "jobs/estimate"):
                with suppress(httpx.HTTPError):
                    tenant.http.post(f"/v1/fine_tuning/{path}", json=body, timeout=1)

    in_threads(4, ask)


def parts(tenant: "Tenant", over: threading.Event) -> None:
    """Parts of uploads, without end."""
    part = b"x" * 2**22
    asked = {"bytes": 0, "filename": "a", "mime_type": "a", "purpose": "user_data"}

    def fill() -> None:
        while not over.is_set():
            with suppress(httpx.HTTPError, KeyError):
                upload = tenant.http.post("/v1/uploads", json=asked).json()["id"]
                for _ in range(4):
                    tenant.http.post(f"/v1/uploads/{upload}/parts", files={"data": part})
                tenant.http.post(f"/v1/uploads/{upload}/cancel")

    in_threads(2, fill)


def large_structures(tenant: "Tenant", over: threading.Event) -> None:
    """Structured output that takes long to compile."""
    asked = ({"choice": ["a" * 1_000_000]}, {"regex": "(a{1000}){1000}"}, {"choice": ["b" * 1000] * 256})
    while not over.is_set():
        for structured in asked:
            tenant.chat(structured_outputs=structured)


def many_sequences(tenant: "Tenant", over: threading.Event) -> None:
    """Requests for thousands of sequences."""
    body = {"model": tenant.model, "prompt": ["x"] * 200, "n": 16, "max_tokens": 500, "ignore_eos": True}

    def ask() -> None:
        while not over.is_set():
            for changes in ({}, {"prompt": ["x"] * 4, "n": 4}):
                with suppress(httpx.HTTPError):
                    tenant.http.post("/v1/completions", json=body | changes, timeout=SECONDS)

    in_threads(8, ask)


def unread_streams(tenant: "Tenant", over: threading.Event) -> None:
    """Streams of an engine that nobody reads."""
    body = {"model": tenant.model, "prompt": "x", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    with ExitStack() as many:
        for _ in range(50):
            with suppress(httpx.HTTPError):
                many.enter_context(tenant.http.stream("POST", "/v1/completions", json=body))
        over.wait()


def in_threads(count: int, work: Callable[[], None]) -> None:
    """Do `work` in so many threads, until all of them end."""
    with ThreadPoolExecutor(count) as pool:
        for _ in range(count):
            pool.submit(work)


KINDS: dict[str, Abuse] = {
    "large JSON": large_json,
    "idle connections": idle_connections,
    "hanging webhooks": hanging_webhooks,
    "many requests": many_requests,
    "parts of uploads": parts,
    "event streams": event_streams,
    "previews of bombs": bombs,
    "large structures": large_structures,
    "many sequences": many_sequences,
    "unread streams": unread_streams,
}
NEED_MODEL = {"event streams", "previews of bombs", "large structures", "many sequences", "unread streams"}


class Ordinary:
    """What a tenant who reads, and chats where there is a model, sees for a while."""

    def __init__(self, tenant: "Tenant", seconds: float) -> None:
        self.failed = 0
        self.times: dict[str, list[float]] = {}
        self._tenant = tenant
        self._end = time.monotonic() + seconds
        calls = {"read": self._read} | ({"chat": self._chat} if tenant.model else {})
        threads = [threading.Thread(target=self._repeat, args=pair) for pair in calls.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _read(self) -> bool:
        return self._tenant.http.get("/v1/models").is_success

    def _chat(self) -> bool:
        return self._tenant.chat(max_tokens=4)

    def _repeat(self, name: str, call: Callable[[], bool]) -> None:
        times = self.times.setdefault(name, [])
        while time.monotonic() < self._end:
            start = time.monotonic()
            try:
                self.failed += not call()
            except httpx.HTTPError:
                self.failed += 1
            times.append(1000 * (time.monotonic() - start))
            time.sleep(EVERY)

    def percentile(self, name: str, percent: int) -> float:
        """Milliseconds within which so many of the calls of that name were answered."""
        times = self.times[name]
        return round(statistics.quantiles(times, n=100)[percent - 1] if len(times) > 1 else times[0], 1)


@contextmanager
def abused(abuser: "Tenant", name: str) -> Iterator[None]:
    """Abuse the service from a process of its own, which holds up nobody who measures.

    It gives way to the service and to the ordinary tenant, as a client on another machine takes none of their CPU.
    """
    model = ["--model", abuser.model] if abuser.model else []
    command = [sys.executable, "-m", "benchmarks.abuse", abuser.url, abuser.key, *model, "--abuse", name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        time.sleep(UNDER_WAY)
        yield
        if process.poll() is not None:
            raise SystemExit(f"{name}: the abuse ended by itself, with {process.returncode}")
        # leaving closes its input, which ends it


def abuse_until_told(abuser: "Tenant", name: str) -> None:
    """Abuse the service until standard input ends."""
    os.nice(19)
    with suppress(OSError):  # where the kernel groups tasks by session, the session has a niceness of its own
        Path("/proc/self/autogroup").write_text("19", encoding="ascii")
    over = threading.Event()
    thread = threading.Thread(target=KINDS[name], args=(abuser, over))
    thread.start()
    sys.stdin.read()
    over.set()
    thread.join()


def measured(mine: "Tenant", abuser: "Tenant", name: str, seconds: float) -> dict[str, float]:
    """The ordinary tenant's figures, before and during the abuse."""
    quiet = Ordinary(mine, seconds)
    with abused(abuser, name):
        busy = Ordinary(mine, seconds)
    found: dict[str, float] = {"failed": busy.failed, "failed_quiet": quiet.failed}
    for call in busy.times:
        for percent in (50, 99):
            before, now = quiet.percentile(call, percent), busy.percentile(call, percent)
            found[f"{call}_p{percent}_quiet_ms"], found[f"{call}_p{percent}_ms"] = before, now
        found[f"{call}_p99_ratio"] = round(now / before, 2)
    return found


def main() -> None:
    """Measure every kind in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="such as http://127.0.0.1:8000")
    parser.add_argument("admin_key")
    parser.add_argument("--model", help="a base model that chats are asked of and jobs train")
    parser.add_argument("--only", choices=KINDS, action="append", help="one kind; may be repeated")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="of each of the two measurements of a kind"
    )
    parser.add_argument("--output", type=Path, help="where the results go, as JSON")
    parser.add_argument("--abuse", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.abuse:
        abuse_until_told(Tenant(options.url, options.admin_key, options.model), options.abuse)
        return
    run = f"{time.time():.0f}"
    mine = Tenant.made(options.url, options.admin_key, f"ordinary-{run}", options.model)
    if options.model and not any(mine.chat() for _ in range(5)):  # the engine starts
        raise SystemExit(f"{options.model} does not answer")
    if options.model and (
        job := mine.create_job()
    ):  # the first since the start: the server imports torch, once
        mine.http.post(f"/v1/fine_tuning/jobs/{job}/cancel")
    results = {}
    for number, name in enumerate(KINDS):
        if (options.only and name not in options.only) or (name in NEED_MODEL and not options.model):
            continue
        # Its job waits: training, which shares the cores of a machine without a GPU, is no part of the abuse.
        abuser = Tenant.made(
            options.url, options.admin_key, f"abusive-{number}-{run}", options.model, jobs_running=0
        )
        results[name] = measured(mine, abuser, name, options.seconds)
        print(f"{name}: {results[name]}", flush=True)
    if options.output:
        found = {"machine": cpu_name(), "seconds": options.seconds, "kinds": results}
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
