"""One model's engine process: started on demand, awaited, and restarted after it died."""

import logging
import os
import re
import threading
import time
from pathlib import Path

import httpx

from alignkit.redaction import scrub_paths
from alignkit_server.confine import confined
from alignkit_server.engines.command import CommandBuilder
from alignkit_server.engines.errors import EngineError
from alignkit_server.engines.facts import EngineStatus
from alignkit_server.engines.process import ManagedProcess, child_environment, free_port
from alignkit_server.engines.weights import file_name
from alignkit_server.settings import Settings

BACK_OFF_SECONDS = 10.0
"""Seconds that a failed start is remembered: until then callers get its error instead of another start."""
POLL_SECONDS = 0.1
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
        self._process: ManagedProcess | None = None
        self._ready = False
        self._failure: EngineError | None = None
        self._failed_at = 0.0

    def endpoint(self) -> str:
        """The engine's URL, after it is ready. Raises EngineError."""
        with self._lock:
            if self._stopping.is_set():
                raise EngineError("engine_stopped", "the service is shutting down")
            if (url := self.running_endpoint()) is not None:
                return url
            if self._failure is not None and time.monotonic() - self._failed_at < BACK_OFF_SECONDS:
                raise EngineError(self._failure.code, str(self._failure))
            try:
                return self._start()
            except EngineError as error:
                self._failure, self._failed_at = error, time.monotonic()
                raise

    def running_endpoint(self) -> str | None:
        """The engine's URL if it is ready now, else None. Starts nothing."""
        process = self._process
        if process is None or not self._ready or not process.alive():
            return None
        return f"http://127.0.0.1:{process.port}"

    def status(self) -> EngineStatus:
        if self.running_endpoint() is not None:
            return "ready"
        if self._process is not None:
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

    def _start(self) -> str:
        if self._process is not None:
            logger.warning("the engine of %s ended; starting it again", self._base_model)
            self._end()
        self._failure = None
        port = free_port()
        command = self._build_command(self._settings, self._base_model, port)
        arguments = command.arguments
        if self._settings.engine.confine:
            arguments = confined(arguments, home=self._settings.root, reads=command.reads)
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
        if process is not None:
            process.terminate(self._settings.stop_grace_seconds)


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
