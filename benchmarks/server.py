"""What the service costs: `python -m benchmarks.server`. Prints one table and writes results/server.json.

The server is the real one, a process of its own; training is a stand-in. What a chat costs is in `serving.py`.
"""

import argparse
import json
import math
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.table import Table
from sqlalchemy import insert, select, text, update

from alignkit.hardware import cpu_name
from alignkit_server.clock import now
from alignkit_server.database import Database
from alignkit_server.tables import Job, Project
from benchmarks import serving
from benchmarks.serving import Figures, timed
from tests.server.postgres import postgres
from tests.server.runner.killing import Rig
from tests.server.support import pairs

RESULTS = Path(__file__).parent / "results"
UPLOAD_BYTES = 100 * 2**20


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a few of each, to see that it works; writes nothing"
    )
    quick = parser.parse_args().quick
    figures: Figures = {}
    with running() as rig:
        figures |= serving.over_stand_in(rig.home, http(rig), 20 if quick else 500)
        figures |= creation(rig, 3 if quick else 50)
        figures |= upload(rig, UPLOAD_BYTES // 20 if quick else UPLOAD_BYTES)
    figures |= serving.over_vllm(10 if quick else 200)
    jobs, asks = (1000, 20) if quick else (100_000, 300)
    with running() as rig:
        figures["list p99 on SQLite, ms"] = listing(
            rig, f"sqlite:///{rig.home / 'alignkit.sqlite'}", jobs, asks
        )
    with postgres() as url, running(database_url=url) as rig:
        figures["list p99 on Postgres, ms"] = listing(rig, url, jobs, asks)
    show(figures, jobs)
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        result = {"machine": {"device": cpu_name(), "cpus": os.cpu_count()}, "figures": figures}
        (RESULTS / "server.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


@contextmanager
def running(**settings: str) -> Iterator[Rig]:
    """A service that answers."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        rig = Rig(Path(folder) / "home", **settings)
        try:
            rig.client()
            yield rig
        finally:
            rig.clean_up()


def creation(rig: Rig, count: int) -> Figures:
    """A job on a file of 1,000 rows, to the answer and to the start of its process."""
    file = rig.client().files.create(file=("pairs.jsonl", pairs(1000)), purpose="fine-tune").id
    client = http(rig)  # made once: to load the certificates takes longer than anything measured here
    body = {"model": "tiny", "training_file": file, "method": {"type": "f_dpo"}}
    created, started = [], []
    for _ in range(count):
        begun = time.perf_counter()
        job_id = client.post("/v1/fine_tuning/jobs", json=body).raise_for_status().json()["id"]
        created.append(time.perf_counter() - begun)
        rig.wait((rig.home / "jobs" / job_id / "starts").exists, "the training process starts")
        started.append(time.perf_counter() - begun)
        client.post(f"/v1/fine_tuning/jobs/{job_id}/cancel").raise_for_status()
    return {
        "job creation with 1,000 rows, p50 ms": 1e3 * median(created),
        "creation to process start, p50 ms": 1e3 * median(started),
    }


def upload(rig: Rig, size: int) -> Figures:
    """How much the server's memory grows while it takes a file."""
    process = psutil.Process(rig.servers[0].process.pid)
    before, peak, done = process.memory_info().rss, 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    line = pairs(1)
    content = line * (size // len(line))
    form = {"files": {"file": ("big.jsonl", content)}, "data": {"purpose": "fine-tune"}}
    http(rig).post("/v1/files", **form).raise_for_status()  # type: ignore[arg-type]
    done.set()
    watching.join()
    return {f"memory growth by an upload of {size >> 20} MiB, MiB": max(0, peak - before) / 2**20}


def listing(rig: Rig, url: str, jobs: int, asks: int) -> float:
    """The 99th percentile of listing the newest jobs, of which a thousand wait, in milliseconds."""
    database = Database(url)
    with database.writing() as session:
        project = session.scalars(select(Project.id)).one()
        session.execute(update(Project).values(limits={"jobs_running": 0}))  # they wait for ever
        for start in range(0, jobs, 10_000):
            rows = [row(project, n, jobs) for n in range(start, min(jobs, start + 10_000))]
            session.execute(insert(Job), rows)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))  # what Postgres does by itself within a minute
    database.close()
    client = http(rig)
    times = sorted(timed(lambda: client.get("/v1/fine_tuning/jobs").raise_for_status()) for _ in range(asks))
    return 1e3 * times[math.ceil(0.99 * asks) - 1]


def row(project: str, number: int, jobs: int) -> dict[str, Any]:
    """A job as a row; the last thousand wait."""
    waits = number >= jobs - 1000
    return {
        "id": f"ftjob-{number}",
        "project_id": project,
        "created_at": now(),
        "status": "queued" if waits else "succeeded",
        "turn": None if waits else number + 1,
        "base_model": "tiny",
        "training_file": "file-a",
        "seed": 1,
        "method_type": "f_dpo",
        "hyperparameters": {},
        "recipe": {},
        "result_files": [],
    }


def http(rig: Rig) -> httpx.Client:
    """Plain HTTP with the first key."""
    return serving.client(rig.servers[0].url, (rig.home / "first-key").read_text().strip())


def show(figures: Figures, jobs: int) -> None:
    """Print the table."""
    table = Table(title=f"What the service costs; lists of {jobs:,} jobs")
    table.add_column("what")
    table.add_column("figure", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
