"""A service of real processes over stub training, and a hand that kills them."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from openai import OpenAI

from alignkit_server.engines.process import TOKEN_VARIABLE, Identity
from tests.server.support import add_base_model, pairs
from tests.tree import PYTHONPATH, ROOT

HERE = Path(__file__).parent
STUB_TRAINER = HERE / "stub_trainer.py"
FINISHED = {"succeeded", "failed", "cancelled"}
PATIENCE = float(os.environ.get("ALIGNKIT_TEST_PATIENCE", "1"))
"""Times every deadline, for a machine that has more to do than this."""


@dataclass
class Server:
    """One server process; its log is shared with those before and after it."""

    home: Path
    trainer: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] = field(init=False)
    url: str = ""

    def start(self) -> "Server":
        """Start it; it prints its address first of all."""
        with (self.home / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "stub_server.py"), str(self.home), str(self.trainer)],
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": PYTHONPATH} | self.environment,
            )
        self.url = ""
        return self

    def ready(self) -> bool:
        """Whether it answers; waits for the address that it prints, once."""
        assert self.process.stdout is not None
        if not self.url:
            line = self.process.stdout.readline().decode()
            self.url = line.split()[2].removesuffix("/v1") if line.startswith("alignkit serves") else ""
        try:
            return bool(self.url) and httpx.get(f"{self.url}/readyz", trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()


class Rig:
    """A home with a base model, and servers, trainers and engines to kill in it."""

    def __init__(
        self,
        home: Path,
        *,
        servers: int = 1,
        trainer: Path | None = None,
        stub: dict[str, str] | None = None,
        **settings: str,
    ) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        add_base_model(home, "tiny")
        if trainer is None:
            trainer = home / "trainer"
            trainer.write_text(f'#!/bin/sh\nexec {sys.executable} -S {STUB_TRAINER} "$@"\n')
            trainer.chmod(0o755)
        environment = {f"ALIGNKIT_{name.upper()}": value for name, value in settings.items()} | (stub or {})
        self.servers = [Server(home, trainer, environment).start() for _ in range(servers)]

    def client(self) -> OpenAI:
        """A client of the first server that is ready."""
        server = self.wait(lambda: next((s for s in self.servers if s.ready()), None), "a server is ready")
        key = (self.home / "first-key").read_text().strip()
        return OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=30 * PATIENCE)

    def revive(self) -> None:
        """Start the servers that ended by themselves, as whatever supervises them would."""
        for server in self.servers:
            if server.process.poll() is not None:
                server.start()

    def submit(self, count: int, *, name: str = "f_dpo", **hyperparameters: Any) -> list[str]:
        """Create that many jobs of the method of that name."""
        client = self.client()
        file = client.files.create(file=("pairs.jsonl", pairs()), purpose="fine-tune").id
        options = {"max_steps": 4, "checkpoint_interval": 2, "batch_size": 2} | hyperparameters
        method = {"type": name, name: {"hyperparameters": options}}
        return [
            client.fine_tuning.jobs.create(model="tiny", training_file=file, method=method).id  # type: ignore[arg-type]
            for _ in range(count)
        ]

    def kill(self, kind: str, choose: random.Random) -> bool:
        """Kill one process of that kind, if there is one; a server is started again at once."""
        if kind == "server":
            server = choose.choice(self.servers)
            server.kill()
            server.start()
            return True
        folders = {"trainer": "jobs/*/process.json", "engine": "engines/*.json"}
        records = [Identity.load(path) for path in sorted(self.home.glob(folders[kind]))]
        alive = [record for record in records if record and record.pid and psutil.pid_exists(record.pid)]
        if not alive:
            return False
        with suppress(ProcessLookupError):
            os.kill(choose.choice(alive).pid, signal.SIGKILL)
        return True

    def wait(self, condition, what, seconds: float = 120):  # type: ignore[no-untyped-def]
        """The first true value of `condition`."""
        deadline = time.monotonic() + PATIENCE * seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, f"not in time: {what}\n{self.log()}"
            time.sleep(0.05)
        return value

    def log(self) -> str:
        """The end of the servers' log."""
        return (self.home / "server.log").read_text(errors="replace")[-4000:]

    def finish(self, jobs: list[str], seconds: float = 240) -> None:
        """Wait until every job has ended."""

        def ended() -> bool:
            try:
                client = self.client()
                found = {job.id: job.status for job in client.fine_tuning.jobs.list(limit=100)}
            except Exception:  # a server that was just killed
                return False
            return all(found[job] in FINISHED for job in jobs)

        self.wait(ended, "every job ends", seconds)

    def check(self, jobs: list[str]) -> None:
        """Every job succeeded, once, was never trained twice at a time, and serves what an undisturbed run makes."""
        client = self.client()
        for job_id in jobs:
            job = client.fine_tuning.jobs.retrieve(job_id)
            assert job.status == "succeeded", job.error
            events = [e.message for e in client.fine_tuning.jobs.list_events(job_id, limit=100)]
            for message in ("Fine-tuning job started", "The job has successfully completed"):
                assert events.count(message) == 1, events[::-1]
            steps = sorted(c.step_number for c in client.fine_tuning.jobs.checkpoints.list(job_id))
            assert len(steps) == len(set(steps)) > 0
            folder = self.home / "jobs" / job_id
            undisturbed = self.undisturbed(folder)
            (weights,) = undisturbed.glob("*/*.safetensors")
            trained = folder / weights.relative_to(undisturbed)
            assert trained.read_bytes() == weights.read_bytes(), f"{job_id} trained something else"
            adapter = folder / "adapter" / "adapter_model.safetensors"
            if adapter.exists():  # else all weights were trained
                served = self.home / "adapters" / "tiny" / str(job.fine_tuned_model) / adapter.name
                assert served.read_bytes() == adapter.read_bytes()
            assert not (folder / "overlaps").exists(), (folder / "starts").read_text()
            assert not list(folder.glob("repeat-*"))
        names = [model.id for model in client.models.list()]
        assert len(names) == len(set(names))
        staging = [path for path in self.home.glob("adapters/*/.*") if path.name.startswith(".publishing")]
        assert staging == []

    def undisturbed(self, folder: Path) -> Path:
        """The folder of a run by the stub trainer of the same recipe, that nothing disturbed."""
        alone = self.home / "undisturbed" / folder.name
        alone.mkdir(parents=True)
        shutil.copy(folder / "recipe.yaml", alone)
        (alone / "step_seconds").write_text("0")
        subprocess.run([sys.executable, "-S", STUB_TRAINER], cwd=alone, check=True)
        return alone

    def stop(self) -> None:
        """End the servers as a user would; nothing may be left behind."""
        for server in self.servers:
            server.process.send_signal(signal.SIGINT)
        for server in self.servers:
            server.process.wait(timeout=60)
        assert [process.cmdline() for process in self.children()] == []

    def clean_up(self) -> None:
        """End whatever a failed test left running."""
        for server in self.servers:
            server.kill()
        for process in self.children():
            process.kill()

    def children(self) -> list[psutil.Process]:
        """Trainers and engines that run, by the folders that their command lines name."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if TOKEN_VARIABLE in process.environ() and str(self.home) in " ".join(process.cmdline()):
                    found.append(process)
        return found
