"""`make demo`: import the base model, start the service, run the user's script, stop everything.

Exits with 0 only if the script saw an aligned model answer. Whatever happens, no process is left behind.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
from client import BASE_MODEL, DemoError, console
from client import main as run_client
from openai import OpenAI, OpenAIError

from alignkit.errors import AlignkitError
from alignkit.models.importing import import_model

HOME = Path(os.environ.get("ALIGNKIT_DEMO_HOME", ".alignkit/demo")).resolve()
START_SECONDS = 120.0


def main() -> int:
    """Run the demo; the exit status."""
    started = time.monotonic()
    jobs: list[str] = []
    try:
        import_model(BASE_MODEL, HOME / "models", report=console.print)
        with service() as base_url:
            key = (HOME / "first-key").read_text(encoding="utf-8").strip()
            run_client(OpenAI(base_url=base_url, api_key=key, timeout=300), jobs.append)
    except KeyboardInterrupt:
        console.print("\nStopped.")
        return 130
    except (DemoError, AlignkitError, OpenAIError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        if jobs:
            console.print(f"The job's folder: {HOME / 'jobs' / jobs[-1]}", soft_wrap=True)
        return 1
    folder = HOME / "jobs" / jobs[-1]
    accelerate = shlex.join(
        [str(Path(sys.executable).with_name("accelerate")), "launch", "--num_processes", "1"]
    )
    console.print(f"\nRecipe, log, events and adapter: {folder}", soft_wrap=True)
    console.print(
        f"The same run by hand:\n  {accelerate} -m alignkit.train {folder / 'recipe.yaml'}", soft_wrap=True
    )
    console.print(f"Everything is stopped. It took {time.monotonic() - started:.0f} s.")
    return 0


@contextmanager
def service() -> Iterator[str]:
    """The service on a free loopback port; yields its base URL, and ends it with everything it started."""
    HOME.mkdir(parents=True, exist_ok=True)
    log = HOME / "server.log"
    console.print(f"Starting the service in {HOME}; its log is server.log there …", soft_wrap=True)
    address = HOME / "address"
    address.unlink(missing_ok=True)
    command = [sys.executable, "-m", "alignkit", "serve", "--port", "0", "--home", str(HOME)]
    # vLLM computes every adapter at the largest rank it serves, and the demo's has the default 16.
    environment = {**os.environ, "ALIGNKIT_ENGINE__MAX_LORA_RANK": "16"}
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        yield wait_until_ready(server, address, log)
    finally:
        stop(server)


def wait_until_ready(server: subprocess.Popen[bytes], address: Path, log: Path) -> str:
    """The service's base URL, once it is ready."""
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
    """End the service and whatever it started: training and vLLM run in sessions of their own."""
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
