"""The real service as a subprocess, for tests that go the whole way."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI

from tests.preference import write_pairs
from tests.tiny import build_tiny_model

FINISHED = {"succeeded", "failed", "cancelled"}
DEADLINE = 300.0


@dataclass
class Service:
    """A service in its own home, with the base model `tiny`."""

    home: Path
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    """Settings beside the usual."""

    def prepare(self) -> "Service":
        """Make the home: a tiny model and two preference files."""
        build_tiny_model(self.home / "models" / "tiny")
        build_tiny_model(self.home / "models" / "tiny-teacher", seed=1)
        write_pairs(self.home / "train.jsonl", 24)
        write_pairs(self.home / "validation.jsonl", 6, start=100)
        return self

    def start(self) -> "Service":
        """Start it and wait until it is ready."""
        (self.home / "address").unlink(missing_ok=True)
        with (self.home / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "alignkit", "serve", "--port", "0", "--home", str(self.home)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "ALIGNKIT_TRAINING_RESTARTS": "1", **self.environment},
                start_new_session=True,
            )
        wait_for(lambda: (self.home / "address").exists() and self.ready(), "the service is ready")
        return self

    @property
    def url(self) -> str:
        """Its address."""
        return (self.home / "address").read_text().strip()

    def ready(self) -> bool:
        """The answer of /readyz."""
        assert self.process is not None
        assert self.process.poll() is None, (self.home / "server.log").read_text()[-3000:]
        try:
            return httpx.get(f"{self.url}/readyz").is_success
        except httpx.HTTPError:
            return False

    @property
    def client(self) -> OpenAI:
        """The official client with the first key."""
        key = (self.home / "first-key").read_text().strip()
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, timeout=DEADLINE, max_retries=0)

    def stop(self) -> None:
        """End it as a user would, with Ctrl-C."""
        assert self.process is not None
        self.process.send_signal(2)
        assert self.process.wait(timeout=60) is not None

    def upload(self, name: str) -> str:
        """Upload a file of the home for fine-tuning; returns its id."""
        return self.client.files.create(file=self.home / name, purpose="fine-tune").id

    def submit(self, method: str = "f_dpo", train: str = "train.jsonl", **hyperparameters: Any) -> Any:
        """Upload the files and create a job; without hyperparameters of its own an f-DPO job under the JSD."""
        files = [self.upload(name) for name in (train, "validation.jsonl")]
        own = {"divergence": "js_divergence"} if method == "f_dpo" else {}
        options = (
            own
            | {
                "learning_rate_multiplier": 50,
                "batch_size": 4,
            }
            | hyperparameters
        )
        return self.client.fine_tuning.jobs.create(
            model="tiny",
            training_file=files[0],
            validation_file=files[1],
            method={"type": method, method: {"hyperparameters": options}},  # type: ignore[typeddict-item]
            suffix="e2e",
            seed=11,
        )

    def finish(self, job_id: str) -> Any:
        """The job, once it has ended."""

        def job() -> Any:
            found = self.client.fine_tuning.jobs.retrieve(job_id)
            return found if found.status in FINISHED else None

        return wait_for(job, "the job ends")

    def messages(self, job_id: str) -> list[str]:
        """All event messages, oldest first."""
        return [event.message for event in self.client.fine_tuning.jobs.list_events(job_id, limit=100)][::-1]


def wait_for(condition: Any, what: str, seconds: float = DEADLINE) -> Any:
    """The first true value of `condition`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.1)
    return value
