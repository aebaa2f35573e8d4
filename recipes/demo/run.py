"""`make demo`: import the base model, start the service, run the user's script, stop everything.

Exits with 0 only if the aligned model answers better than the base model. With KEEP=1, or if you say so at the
terminal, the service keeps running until Ctrl-C. Whatever happens, no process is left behind. ALIGNKIT_DEMO_MODEL, a
model folder, a GGUF file or a hub id, takes another base model.
"""

import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
from client import BASE_MODEL, DemoError, console
from client import main as run_client
from openai import OpenAI, OpenAIError
from rich.prompt import Confirm

from alignkit.errors import AlignkitError
from alignkit.models.importing import import_model

HOME = Path(os.environ.get("ALIGNKIT_DEMO_HOME", ".alignkit/demo")).resolve()
MODEL = os.environ.get("ALIGNKIT_DEMO_MODEL", BASE_MODEL)
START_SECONDS = 120.0


def main() -> int:
    """Run the demo and return the exit status."""
    started = time.monotonic()
    jobs: list[str] = []
    failed = False
    try:
        model = import_model(MODEL, HOME / "models", report=console.print).name
        with service() as base_url:
            key = (HOME / "first-key").read_text(encoding="utf-8").strip()
            try:
                run_client(OpenAI(base_url=base_url, api_key=key, timeout=300), model, jobs.append)
            except (DemoError, OpenAIError) as error:
                failed = True
                report(error)
            took = time.monotonic() - started
            if jobs and wants_to_stay():
                stay(base_url, key, model)
    except KeyboardInterrupt:
        console.print("\nStopped.")
        return 130
    except (DemoError, AlignkitError, OpenAIError) as error:
        report(error)
        return 1
    show_what_is_left(jobs, took)
    return int(failed)


def report(error: Exception) -> None:
    """Print an error as one sentence."""
    console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)


def show_what_is_left(jobs: list[str], took: float) -> None:
    """Print where the run's files are, and how to serve or repeat it."""
    if jobs:
        folder = HOME / "jobs" / jobs[-1]
        commands = {
            "Serve the model again": [sys.executable, "-m", "alignkit", "serve", "--home", str(HOME)],
            "The same run by hand": [
                str(Path(sys.executable).with_name("accelerate")),
                *["launch", "--num_processes", "1", "-m", "alignkit.train", str(folder / "recipe.yaml")],
            ],
        }
        console.print(f"\nRecipe, log, events and adapter: {folder}", soft_wrap=True)
        for purpose, command in commands.items():
            console.print(f"{purpose}:\n  {shlex.join(command)}", soft_wrap=True, highlight=False)
    console.print(f"Everything is stopped. It took {took:.0f} s.")
    if jobs and (report := HOME / "jobs" / jobs[-1] / "report.html").exists():
        console.print(
            f"The run's report, to open in a browser: {report}", soft_wrap=True, highlight=False, markup=False
        )


def wants_to_stay() -> bool:
    """Whether to keep the service running: KEEP=1, or a yes at a terminal."""
    if (keep := os.environ.get("KEEP")) is not None:
        return keep not in {"", "0"}
    return (
        sys.stdin.isatty() and sys.stdout.isatty() and Confirm.ask("Keep the service running?", default=False)
    )


def stay(base_url: str, key: str, model: str) -> None:
    """Print how to reach the service, and wait for Ctrl-C. `model` is the base model, for an example's request."""
    models = OpenAI(base_url=base_url, api_key=key).models.list()
    tuned = [one.id for one in models if one.id.startswith("ft:")]
    request = json.dumps(
        {"model": tuned[-1] if tuned else model, "messages": [{"role": "user", "content": "Hello!"}]}
    )
    console.print(
        f"\nThe service is running. Open {base_url.removesuffix('/v1')} in a browser and sign in with the key {key}\n"
        "Or use any OpenAI client:\n"
        f"  export OPENAI_BASE_URL={base_url} OPENAI_API_KEY={key} ALIGNKIT_BASE_URL={base_url} "
        f"ALIGNKIT_API_KEY={key} ALIGNKIT_HOME={shlex.quote(str(HOME))}\n"
        f'  curl $OPENAI_BASE_URL/chat/completions -H "Authorization: Bearer $OPENAI_API_KEY" '
        f"-H 'Content-Type: application/json' -d {shlex.quote(request)}\n"
        "Ctrl-C stops it.",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    with suppress(KeyboardInterrupt):
        threading.Event().wait()


@contextmanager
def service() -> Iterator[str]:
    """Run the service on a free loopback port: yield its base URL, then end it and everything it started."""
    HOME.mkdir(parents=True, exist_ok=True)
    log = HOME / "server.log"
    console.print(f"Starting the service in {HOME}; its log is server.log there …", soft_wrap=True)
    address = HOME / "address"
    address.unlink(missing_ok=True)
    command = [sys.executable, "-m", "alignkit", "serve", "--port", "0", "--home", str(HOME)]
    # vLLM computes every adapter at the largest rank it serves, and the demo's has the default 16. Engine and trainer
    # share the cores: a thread that spins while it waits for the others would take them from the other process.
    # A trainer that waits for a second job would take cores from the questions, and nobody else asks: the engine may
    # have every core, of which it would leave one to others.
    cores = str(len(os.sched_getaffinity(0)))
    defaults = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": cores, "ALIGNKIT_STANDBY_SECONDS": "0"}
    environment = {**defaults, **os.environ, "ALIGNKIT_ENGINE__MAX_LORA_RANK": "16"}
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        yield wait_until_ready(server, address, log)
    finally:
        stop(server)


def wait_until_ready(server: subprocess.Popen[bytes], address: Path, log: Path) -> str:
    """Wait until the service is ready, and return its base URL."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
            raise DemoError(f"The service did not start. The end of {log}:\n{tail}")
        if address.exists() and answers(url := address.read_text(encoding="utf-8").strip()):
            return f"{url}/v1"
        time.sleep(0.2)
    raise DemoError(f"The service was not ready after {START_SECONDS:.0f} s; see {log}")


def answers(url: str) -> bool:
    """Whether the service at `url` is ready."""
    try:
        return httpx.get(f"{url}/readyz", timeout=2).is_success
    except httpx.HTTPError:
        return False


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the service, and training and vLLM, which run in sessions of their own."""
    try:
        family = psutil.Process(server.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    server.terminate()
    try:
        server.wait(timeout=40)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    for process in family:
        if process.is_running():
            process.kill()
    psutil.wait_procs(family, timeout=10)


if __name__ == "__main__":
    sys.exit(main())
