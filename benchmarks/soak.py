"""What grows while the service works for long: `python -m benchmarks.soak`. Writes results/soak.json and soak.png.

Two servers on one Postgres, over stand-ins for engines and trainers. Clients train jobs of every method in turn,
chat, listen, upload, and delete what they made: what is kept stays the same, and everything else should too.
"""

import argparse
import itertools
import json
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from sqlalchemy import Engine, create_engine, text

from alignkit.hardware import cpu_name
from benchmarks import plot
from tests.e2e.test_methods import CASES
from tests.server.postgres import postgres
from tests.server.runner.killing import FINISHED, Rig
from tests.server.support import add_base_model, pairs

RESULTS = Path(__file__).parent / "results"
WARM_UP = 1 / 6
"""The share of the time after which nothing may grow: ten minutes of an hour."""
KEPT_JOBS = 3
MEASURES = {
    "memory_mb": "resident MB",
    "threads": "threads",
    "handles": "file handles",
    "database_mb": "database, MB",
    "home_mb": "home, MB",
}
TABLES = text(
    "SELECT schemaname || '.' || relname, pg_total_relation_size(relid), n_live_tup FROM pg_stat_user_tables"
)


class UnexpectedAnswerError(Exception):
    """What a client got is not what it should get."""


class Clients:
    """A tenant's clients, each a thread that repeats one kind of work until the end."""

    def __init__(self, rig: Rig, pause: float) -> None:
        """`pause`: seconds between two turns of one client."""
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self._rig = rig
        self._pause = pause
        self._over = threading.Event()
        self._key = (rig.home / "first-key").read_text().strip()
        self._turn = itertools.count()
        self._methods = itertools.cycle(CASES)
        self._jobs: list[str] = []
        work = (self._train, self._chat, self._stream, self._upload, self._upload_in_parts, self._read)
        self._threads = [threading.Thread(target=self._repeat, args=(one,)) for one in work]

    @contextmanager
    def working(self) -> Iterator[None]:
        """Work meanwhile."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join()

    def _repeat(self, work: Callable[[httpx.Client], None]) -> None:
        name = work.__name__.removeprefix("_")
        while not self._over.wait(self._pause):
            url = self._rig.servers[next(self._turn) % len(self._rig.servers)].url
            headers = {"authorization": f"Bearer {self._key}"}
            with httpx.Client(base_url=url, headers=headers, timeout=120, trust_env=False) as http:
                try:
                    work(http)
                    self.done[name] += 1
                except (httpx.HTTPError, UnexpectedAnswerError) as error:
                    self.failed[f"{name}: {type(error).__name__} {str(error)[:200]}"] += 1

    def _train(self, http: httpx.Client) -> None:
        """A job of the next method, listened to until it has ended; then the oldest job's models and folder go."""
        name = next(self._methods)
        options = CASES[name].hyperparameters | {"max_steps": 4, "checkpoint_interval": 2, "batch_size": 2}
        body = {
            "model": "tiny",
            "training_file": file_made(http),
            "method": {"type": name, name: {"hyperparameters": options}},
        }
        job = made(http.post("/v1/fine_tuning/jobs", json=body))["id"]
        with http.stream("GET", f"/v1/fine_tuning/jobs/{job}/events", params={"stream": True}) as events:
            for _ in events.iter_lines():
                pass
        ended = made(http.get(f"/v1/fine_tuning/jobs/{job}"))
        require(ended["status"] == "succeeded", f"{name} {ended['status']} {ended['error']}")
        self._jobs.append(job)
        if len(self._jobs) > KEPT_JOBS:
            self._remove(http, self._jobs.pop(0))

    def _remove(self, http: httpx.Client, job_id: str) -> None:
        job = made(http.get(f"/v1/fine_tuning/jobs/{job_id}"))
        checkpoints = made(http.get(f"/v1/fine_tuning/jobs/{job_id}/checkpoints"))["data"]
        names = {job["fine_tuned_model"], *(one["fine_tuned_model_checkpoint"] for one in checkpoints)}
        for name in names:
            made(http.delete(f"/v1/models/{name}"))
        for file_id in (job["training_file"], *job["result_files"]):
            made(http.delete(f"/v1/files/{file_id}"))

    def _chat(self, http: httpx.Client) -> None:
        made(http.post("/v1/chat/completions", json=chat("echo:")))

    def _stream(self, http: httpx.Client) -> None:
        body = chat("say:one two three") | {"stream": True}
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            require(answer.is_success, f"a stream was answered {answer.status_code}")
            require("data: [DONE]" in answer.iter_lines(), "a stream ended early")

    def _upload(self, http: httpx.Client) -> None:
        file_id = file_made(http, 200)
        require(http.get(f"/v1/files/{file_id}/content").is_success, "a file cannot be read")
        made(http.delete(f"/v1/files/{file_id}"))

    def _upload_in_parts(self, http: httpx.Client) -> None:
        content = pairs(400)
        asked = {
            "bytes": len(content),
            "filename": "p.jsonl",
            "mime_type": "text/jsonl",
            "purpose": "fine-tune",
        }
        upload = made(http.post("/v1/uploads", json=asked))["id"]
        half = len(content) // 2
        parts = [
            made(http.post(f"/v1/uploads/{upload}/parts", files={"data": part}))["id"]
            for part in (content[:half], content[half:])
        ]
        if self.done["upload_in_parts"] % 4 == 3:
            made(http.post(f"/v1/uploads/{upload}/cancel"))
            return
        file = made(http.post(f"/v1/uploads/{upload}/complete", json={"part_ids": parts}))["file"]
        made(http.delete(f"/v1/files/{file['id']}"))

    def _read(self, http: httpx.Client) -> None:
        for path in ("/v1/models", "/v1/files", "/v1/fine_tuning/jobs"):
            made(http.get(path))


def require(good: bool, otherwise: str) -> None:  # noqa: FBT001
    """Raise UnexpectedAnswerError with those words unless all is well."""
    if not good:
        raise UnexpectedAnswerError(otherwise)


def made(answer: httpx.Response) -> dict[str, Any]:
    """The body of an answer that is no error."""
    require(answer.is_success, f"{answer.request.method} {answer.request.url.path}: {answer.text[:200]}")
    body: dict[str, Any] = answer.json()
    return body


def file_made(http: httpx.Client, rows: int = 8) -> str:
    """The id of a new file of pairs."""
    upload = {"file": ("pairs.jsonl", pairs(rows))}
    return str(made(http.post("/v1/files", files=upload, data={"purpose": "fine-tune"}))["id"])


def chat(content: str) -> dict[str, Any]:
    """The body of a chat with the base model's stand-in, which does what the message says."""
    return {"model": "tiny", "messages": [{"role": "user", "content": content}]}


def sample(rig: Rig, engine: Engine) -> dict[str, list[float]]:
    """One value a server of what is a process's; of the database and the home one value."""
    processes = [psutil.Process(server.process.pid) for server in rig.servers]
    with engine.connect() as connection:
        size = connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one()
    home = sum(path.stat().st_size for path in files_in(rig.home))
    return {
        "memory_mb": [process.memory_info().rss / 2**20 for process in processes],
        "threads": [process.num_threads() for process in processes],
        "handles": [process.num_fds() for process in processes],
        "database_mb": [size / 2**20],
        "home_mb": [home / 2**20],
    }


def files_in(folder: Path) -> Iterator[Path]:
    """Files in the folder and below, without what vanishes meanwhile and without the tests' own log."""
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            if path.exists() and name not in {"server.log", "notes"}:
                yield path


def tables(engine: Engine) -> dict[str, tuple[int, int]]:
    """(bytes, rows) of every table."""
    with engine.connect() as connection:
        connection.execute(text("ANALYZE"))
        return {name: (size, rows) for name, size, rows in connection.execute(TABLES)}


def slope(points: list[tuple[float, float]]) -> float:
    """What a straight line through (seconds, value) grows in an hour."""
    if len(points) < 2:
        return 0.0
    mean_x, mean_y = (sum(column) / len(points) for column in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return 3600 * sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


def growth(samples: list[dict[str, Any]], seconds: float) -> dict[str, list[float]]:
    """What each measure grows in an hour, after the warm-up."""
    warm = [one for one in samples if one["seconds"] >= WARM_UP * seconds]
    return {
        name: [
            round(slope([(one["seconds"], one[name][n]) for one in warm]), 3)
            for n in range(len(warm[0][name]))
        ]
        for name in MEASURES
    }


def soak(minutes: float, every: float, pause: float) -> dict[str, Any]:
    """Let the clients work so long, with a sample every so many seconds; returns the result."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, postgres() as url:
        rig = Rig(Path(folder) / "home", servers=2, database_url=url, training_slots="2")
        add_base_model(rig.home, "tiny-teacher")
        engine = create_engine(url)
        try:
            for server in rig.servers:
                rig.wait(server.ready, "both servers answer")
            clients, samples, start = Clients(rig, pause), [], time.monotonic()
            before = tables(engine)
            with clients.working():
                while (elapsed := time.monotonic() - start) < 60 * minutes:
                    samples.append({"seconds": round(elapsed, 1)} | sample(rig, engine))
                    time.sleep(min(every, max(0.0, 60 * minutes - elapsed)))
            samples.append({"seconds": round(time.monotonic() - start, 1)} | sample(rig, engine))
            after = tables(engine)
            unended = [job for job in _statuses(rig) if job not in FINISHED]
        finally:
            engine.dispose()
            rig.clean_up()
    jobs = max(1, clients.done["train"])
    return {
        "machine": {"device": cpu_name(), "cpus": os.cpu_count()},
        "minutes": minutes,
        "done": dict(clients.done),
        "failed": dict(clients.failed),
        "unended_jobs": len(unended),
        "growth_per_hour": growth(samples, 60 * minutes),
        "bytes_per_job": {
            name: round((size - before.get(name, (0, 0))[0]) / jobs)
            for name, (size, _) in sorted(after.items(), key=lambda item: -item[1][0])
            if size > before.get(name, (0, 0))[0]
        },
        "samples": samples,
    }


def _statuses(rig: Rig) -> list[str]:
    client = rig.client()
    return [str(job.status) for job in client.fine_tuning.jobs.list(limit=100).data]


def main() -> None:
    """Soak, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two samples")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between two turns of a client")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of soak.json and soak.png")
    options = parser.parse_args()
    result = soak(options.minutes, options.every, options.pause)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "soak.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
    plot.over_time(result["samples"], MEASURES, options.out / "soak.png")
    print(json.dumps({name: value for name, value in result.items() if name != "samples"}, indent=1))


if __name__ == "__main__":
    main()
