"""A real Ray of this machine: a head and nodes with made-up GPUs, each node's processes ended whole."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from alignkit_server.engines.process import free_port
from tests.tree import PYTHONPATH

RAY = Path(sys.executable).with_name("ray")
HERE = Path(__file__).parent


class Node:
    """One `ray start --block` and all that it started."""

    def __init__(self, log: Path, *arguments: str, cpus: int = 4, gpus: int = 0) -> None:
        options = [f"--num-cpus={cpus}", f"--num-gpus={gpus}", "--object-store-memory=80000000"]
        self.token = f"{log}"
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PYTHONPATH": PYTHONPATH,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # after which a node without a head ends itself
            "RAY_health_check_period_ms": "1000",
            "RAY_enable_metrics_collection": "0",
            "OMP_NUM_THREADS": "1",
            "SPT_NOENV": "1",  # or Ray's titles of processes would hide the name of their node
            "ALIGNKIT_TEST_NODE": self.token,
        }
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [str(RAY), "start", "--block", *arguments, *options],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def kill(self) -> None:
        """kill -9 to all of the node at once, as if its machine were gone."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.kill()
        self.process.wait()

    def processes(self) -> list[psutil.Process]:
        """Everything that runs on the node, what a job started included."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("ALIGNKIT_TEST_NODE") == self.token:
                    found.append(process)
        return found


class Cluster:
    """A head, without GPUs, and nodes."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # short: sockets lie in it
        self._gcs, self._dashboard = free_port(), free_port()
        self.address = f"http://127.0.0.1:{self._dashboard}"
        self.head: Node
        self.nodes: list[Node] = []
        self._count = 0
        self.start_head()

    def start_head(self) -> None:
        """Start a head, at the same address as the one before."""
        self.head = self._started(
            lambda log: Node(
                log,
                "--head",
                f"--port={self._gcs}",
                f"--dashboard-port={self._dashboard}",
                "--dashboard-host=127.0.0.1",
                f"--temp-dir={self._folder}",
                "--disable-usage-stats",
            ),
            self.alive,
        )

    def add_node(self, *, gpus: int = 1) -> Node:
        """One more node, which has joined."""
        before = self.gpus()
        node = self._started(
            lambda log: Node(log, f"--address=127.0.0.1:{self._gcs}", gpus=gpus),
            lambda: self.gpus() == before + gpus,
        )
        self.nodes.append(node)
        return node

    def _started(self, start: Callable[[Path], Node], ready: Callable[[], Any]) -> Node:
        """A node that is ready; one that Ray gave up on, as it does on a busy machine, is tried again."""

        def new() -> Node:
            self._count += 1
            return start(self._folder / f"node-{self._count}.log")

        node = new()
        try:
            deadline = time.monotonic() + 240
            while not ready():
                assert time.monotonic() < deadline, "not in time: the node is ready"
                if node.process.poll() is not None:
                    node.kill()
                    node = new()
                time.sleep(0.1)
        except BaseException:
            node.kill()
            raise
        return node

    def kill_node(self, node: Node) -> None:
        node.kill()
        self.nodes.remove(node)
        until(lambda: self.gpus() == len(self.nodes), "the head misses the node", 120)

    def alive(self) -> list[dict[str, Any]]:
        """The resources of each living node, as the head sees them, its own among them."""
        found = self.get("/api/v0/nodes?detail=true") or {"data": {"result": {"result": []}}}
        return [
            node["resources_total"] for node in found["data"]["result"]["result"] if node["state"] == "ALIVE"
        ]

    def gpus(self) -> float:
        """GPUs of the living nodes."""
        return sum(resources.get("GPU", 0) for resources in self.alive())

    def jobs(self) -> dict[str, str]:
        """Every job's status by submission id."""
        return {
            job["submission_id"]: job["status"]
            for job in self.get("/api/jobs/") or []
            if job["submission_id"]
        }

    def get(self, path: str) -> Any:
        """The dashboard's answer; None if it does not answer."""
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.get(self.address + path, trust_env=False, timeout=10)
            return answer.json() if answer.is_success else None

    def close(self) -> None:
        """End everything."""
        for node in [*self.nodes, self.head]:
            node.process.send_signal(signal.SIGTERM)
        for node in [*self.nodes, self.head]:
            node.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def stub_python(folder: Path) -> str:
    """Stands in for the nodes' interpreter: the service's own modules are real, training is the stub's."""
    program = folder / "node-python"
    stub = HERE.parent / "runner" / "stub_trainer.py"
    program.write_text(
        "#!/bin/sh\n"
        'case "$2" in\n'
        f'alignkit_server.*) exec {sys.executable} {HERE / "as_python.py"} "$0" "$2" "$@";;\n'
        f'*) exec {sys.executable} -S {stub} "$@";;\n'
        "esac\n"
    )
    program.chmod(0o755)
    return str(program)


def until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.1)
    return value
