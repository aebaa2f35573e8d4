"""One model's engine process: started on demand, awaited, and restarted after it died or for a larger LoRA rank."""

import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from alignkit.redaction import scrub_paths
from alignkit_server.confine import confined
from alignkit_server.engines.command import CommandBuilder
from alignkit_server.engines.errors import EngineError
from alignkit_server.engines.facts import EngineStatus, Lease
from alignkit_server.engines.process import ManagedProcess, child_environment, free_port
from alignkit_server.engines.ranks import VLLM_RANKS, engine_rank, published_rank
from alignkit_server.engines.weights import file_name
from alignkit_server.settings import Settings

BACK_OFF_SECONDS = 10.0
"""Seconds that a failed start is remembered: until then callers get its error instead of another start."""
DRAIN_SECONDS = 30.0
"""Seconds that new requests wait for those at work to end before a restart."""
PUT_OFF_SECONDS = 300.0
"""Seconds without another such wait after one in vain: a restart then only comes while no request is at work."""
LAST_ANSWERS_SECONDS = 180.0
"""Seconds that answers at work have left where the engine makes room for another."""
SLEEP_SECONDS = 60.0
"""Time in which an engine must fall asleep or wake: the weights move between the GPU and the memory."""
POLL_SECONDS = 0.1
NICE = 5
"""How much nicer than the server an engine is; less than a trainer."""
OWNER_MARK = "@"
"""Separates a model's name, which never contains it, from the server's process id in file names."""

_LOG_PREFIX = re.compile(
    r"^(?:\(\w+ pid=\d+\) ?)?(?:(?:ERROR|WARNING|INFO|DEBUG) [\d-]+ [\d:]+ \[[^\]]*\] ?)?"
)
_ERROR_LINE = re.compile(r"^[\w.]*(?:Error|Exception|Exit|Interrupt)\b|^[\w.-]+: error: ")
_UNTELLING = re.compile(r"(?:Engine core|WorkerProc) initialization failed")

logger = logging.getLogger(__name__)


class Engine:
    """The engine of one model. Thread-safe: one caller starts it, the others wait."""

    def __init__(
        self, settings: Settings, base_model: str, build_command: CommandBuilder, stopping: threading.Event
    ) -> None:
        self._settings = settings
        self._base_model = base_model
        self._build_command = build_command
        self._stopping = stopping
        self._lock = threading.Lock()
        self._leases = threading.Condition()
        self._leased = 0
        self._draining = False
        self._put_off_until = 0.0
        self._rank = 0
        """The largest LoRA rank that the process was started for."""
        self._sleeps = False
        """Whether the process can sleep."""
        self.asleep_since: float | None = None
        """When it was put to sleep, on the monotonic clock; None while it is not asleep."""
        self._most = engine_rank(VLLM_RANKS[-1], settings.engine.max_lora_rank)
        """The largest that one is started for; vLLM itself refuses an adapter beyond."""
        self._process: ManagedProcess | None = None
        self._ready = False
        self._failure: EngineError | None = None
        self._failed_at = 0.0

    def endpoint(self, rank: int = 0) -> str:
        """The engine's URL, after it is ready for adapters of this LoRA rank. Raises EngineError."""
        rank = min(rank, self._most)
        with self._lock:
            if self._stopping.is_set():
                raise EngineError("engine_stopped", "the service is shutting down")
            url = self.running_endpoint() or self._woken(rank)
            if url is not None and rank <= self._rank:
                return url
            if self._failure is not None and time.monotonic() - self._failed_at < BACK_OFF_SECONDS:
                raise EngineError(self._failure.code, str(self._failure))
            if url is not None:
                self._grow(rank)
            try:
                return self._start(rank)
            except EngineError as error:
                self._failure, self._failed_at = error, time.monotonic()
                raise

    def lease(self, rank: int) -> Lease | None:
        """A lease of the engine if it is ready now for adapters of this LoRA rank, else None; never waits."""
        with self._leases:
            url = self.running_endpoint()
            if url is None or self._draining or min(rank, self._most) > self._rank:
                return None
            self._leased += 1
            return Lease(url, self._end_lease)

    def _end_lease(self) -> None:
        with self._leases:
            self._leased -= 1
            self._leases.notify_all()

    def _grow(self, rank: int) -> None:
        """End the process, to be started for a larger rank. Raises EngineError while requests are at work.

        They are never broken off for another, and those that come wait only for a bounded part of the time.
        """
        waits = time.monotonic() >= self._put_off_until
        with self._drained(DRAIN_SECONDS if waits else 0) as quiet:
            if not quiet:
                if waits:
                    self._put_off_until = time.monotonic() + PUT_OFF_SECONDS
                raise self._at_work()
            logger.info("restarting the engine of %s for rank %d", self._base_model, rank)
            self._end()

    @contextmanager
    def _drained(self, seconds: float) -> Iterator[bool]:
        """Grant no more leases until the context ends, which begins with whether none is left after `seconds`."""
        deadline = time.monotonic() + seconds
        try:
            with self._leases:
                self._draining = True
                while self._leased and time.monotonic() < deadline:
                    if self._stopping.is_set():
                        raise EngineError("engine_stopped", "the service is shutting down")
                    self._leases.wait(POLL_SECONDS)
                quiet = not self._leased
            yield quiet
        finally:
            with self._leases:
                self._draining = False

    def _at_work(self) -> EngineError:
        return EngineError(
            "engine_busy",
            f"the engine of {self._base_model} must restart for an adapter of this rank, and is still answering "
            "other requests; try again later",
        )

    def running_endpoint(self) -> str | None:
        """The engine's URL if it is ready now, else None. Starts nothing."""
        process = self._process
        if process is None or not self._ready or self.asleep_since is not None or not process.alive():
            return None
        return f"http://127.0.0.1:{process.port}"

    def status(self) -> EngineStatus:
        if self.running_endpoint() is not None:
            return "ready"
        process = self._process
        if process is not None and self.asleep_since is not None and process.alive():
            return "sleeping"
        if process is not None:
            return "failed" if self._ready else "starting"
        return "failed" if self._failure is not None else "stopped"

    def failure(self) -> str | None:
        """Why the last start failed; None if it did not."""
        return None if self._failure is None else str(self._failure)

    def log_tail(self, count: int) -> list[str]:
        """The last `count` lines of the engine's log, without paths."""
        process = self._process
        return [scrub_paths(line) for line in process.last_lines(count)] if process else []

    def stop(self) -> None:
        """Stop the process, after waiting for a start in progress (which `stopping` shortens)."""
        with self._lock:
            self._end()

    def rest(self) -> None:
        """Put the engine to sleep if it can, else stop it, once it is idle or its answers at work had time to end."""
        with self._lock, self._drained(LAST_ANSWERS_SECONDS) as quiet:
            url = self.running_endpoint()
            if quiet and url is not None and self._sleeps and _obeys(f"{url}/sleep?level=1"):
                self.asleep_since = time.monotonic()
            elif self.asleep_since is None:
                self._end()

    def end_sleep(self) -> None:
        """Stop the engine if it is asleep."""
        with self._lock:
            if self.asleep_since is not None:
                self._end()

    def _woken(self, rank: int) -> str | None:
        """The URL of an engine that was asleep; None if it must be started, because it is gone or serves less."""
        if self.asleep_since is None or self._process is None:
            return None
        url = f"http://127.0.0.1:{self._process.port}"
        if rank <= self._rank and self._process.alive() and _obeys(f"{url}/wake_up"):
            self.asleep_since = None
            return url
        self._end()
        return None

    def _start(self, rank: int) -> str:
        if self._process is not None:
            logger.warning("the engine of %s ended; starting it again", self._base_model)
            self._end()
        # After a failure, only what is asked for: one adapter too large for the device must not keep out all others.
        if self._failure is None:
            rank = max(rank, published_rank(self._settings.adapters_dir / self._base_model))
        self._failure = None
        port = free_port()
        command = self._build_command(self._settings, self._base_model, port, rank)
        arguments = command.arguments
        if self._settings.engine.confine:
            arguments = confined(
                arguments, home=self._settings.root, reads=command.reads, writes=command.writes
            )
        started = time.monotonic()
        identity_path, log_path = engine_files(self._settings, self._base_model)
        try:
            self._process = ManagedProcess.start(
                arguments,
                log_path=log_path,
                identity_path=identity_path,
                environment=child_environment(command.environment),
                port=port,
                cwd=command.cwd,
                nice=NICE,
            )
        except OSError as error:
            raise EngineError(
                "engine_failed", f"the engine of {self._base_model} cannot be started: {error.strerror}"
            ) from error
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self._end()
            raise
        self._sleeps = command.sleeps
        self._rank = VLLM_RANKS[-1] if command.rank is None else max(command.rank, rank)
        self._ready = True
        logger.info("the engine of %s is ready after %.0f s", self._base_model, time.monotonic() - started)
        return f"http://127.0.0.1:{port}"

    def _wait_until_ready(self, process: ManagedProcess) -> None:
        deadline = time.monotonic() + self._settings.engine.start_timeout_seconds
        # trust_env=False: ignore proxies in the environment, since this is loopback.
        with httpx.Client(
            base_url=f"http://127.0.0.1:{process.port}", trust_env=False, timeout=1.0
        ) as client:
            while not self._answers(client):
                if not process.alive():
                    raise self._died(process)
                if time.monotonic() > deadline:
                    seconds = self._settings.engine.start_timeout_seconds
                    raise EngineError(
                        "engine_failed",
                        f"the engine of {self._base_model} was not ready within {seconds:.0f} s; "
                        f"its last log lines: {telling_lines(process.last_lines(40))}",
                    )
                if self._stopping.wait(POLL_SECONDS):
                    raise EngineError("engine_stopped", "the service is shutting down")
        if not process.alive():  # another process answered on its port
            raise self._died(process)

    def _answers(self, client: httpx.Client) -> bool:
        try:
            response = client.get("/v1/models")
            return response.is_success and any(
                card["id"] == self._base_model for card in response.json()["data"]
            )
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return False

    def _died(self, process: ManagedProcess) -> EngineError:
        return EngineError(
            "engine_failed",
            f"the engine of {self._base_model} ended while starting (exit status {process.returncode}); "
            f"its last log lines: {telling_lines(process.last_lines(200))}",
        )

    def _end(self) -> None:
        process, self._process, self._ready = self._process, None, False
        self.asleep_since = None
        if process is not None:
            process.terminate(self._settings.stop_grace_seconds)


def _obeys(url: str) -> bool:
    """Whether an engine has done what a request of its sleep mode asks for."""
    try:
        return httpx.post(url, json={}, trust_env=False, timeout=SLEEP_SECONDS).is_success
    except httpx.HTTPError:
        return False


def engine_files(settings: Settings, base_model: str) -> tuple[Path, Path]:
    """Paths of the identity file and the log of this server's engine of a model; each server has its own."""
    name = f"{file_name(base_model)}{OWNER_MARK}{os.getpid()}"
    return settings.engines_dir / f"{name}.json", settings.engines_dir / f"{name}.log"


def telling_lines(lines: list[str], count: int = 3) -> str:
    """The last `count` distinct lines that name an error, or else the last lines; without prefixes and paths."""
    plain = [_LOG_PREFIX.sub("", line).strip() for line in lines]
    errors = [line for line in plain if _ERROR_LINE.match(line) and not _UNTELLING.search(line)]
    chosen = list(dict.fromkeys(errors or plain))[-count:]
    return scrub_paths(" | ".join(chosen)) or "(nothing was written)"
