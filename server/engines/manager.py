"""All engines of the service: one per base model, started when first needed and ended with the service."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

from alignkit.models import NAME_PATTERN
from server.engines.command import CommandBuilder, vllm_command
from server.engines.engine import OWNER_MARK, Engine, EngineStatus
from server.engines.errors import EngineError
from server.engines.process import ManagedProcess
from server.settings import Settings

__all__ = ["EngineError", "EngineManager"]

logger = logging.getLogger(__name__)


class EngineManager:
    """Starts, finds and ends the engine of each base model. Thread-safe; every method may block."""

    def __init__(self, settings: Settings, *, build_command: CommandBuilder = vllm_command) -> None:
        self._settings = settings
        self._build_command = build_command
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._engines: dict[str, Engine] = {}

    def endpoint(self, base_model: str) -> str:
        """The URL of `base_model`'s engine ("http://127.0.0.1:PORT"), started and waited for where needed.

        Concurrent callers share one start. Raises EngineError; a failed start is remembered for some seconds.
        """
        return self._engine(base_model).endpoint()

    def running_endpoint(self, base_model: str) -> str | None:
        """The URL of `base_model`'s engine where it is ready now, else None; starts nothing."""
        engine = self._engines.get(base_model)
        return engine.running_endpoint() if engine else None

    def status(self, base_model: str) -> EngineStatus:
        """Where `base_model`'s engine stands."""
        engine = self._engines.get(base_model)
        return engine.status() if engine else "stopped"

    def log_tail(self, base_model: str, count: int = 20) -> list[str]:
        """The last lines `base_model`'s engine wrote, without paths."""
        engine = self._engines.get(base_model)
        return engine.log_tail(count) if engine else []

    def shutdown(self) -> None:
        """End every engine, those still starting included; from then on `endpoint` refuses."""
        self._stopping.set()
        with self._lock:
            engines = list(self._engines.values())
        if engines:
            with ThreadPoolExecutor(len(engines)) as pool:
                list(pool.map(Engine.stop, engines))

    def cleanup_leftovers(self) -> list[str]:
        """End the engines that a killed server left running; returns their base models. Call it at start."""
        ended = []
        for identity_path in sorted(self._settings.engines_dir.glob("*.json")):
            base_model = identity_path.stem.partition(OWNER_MARK)[0]
            process = ManagedProcess.attach(identity_path, log_path=identity_path.with_suffix(".log"))
            if process is None:
                identity_path.unlink(missing_ok=True)
            elif not process.identity.owned_by_another():
                logger.warning("ending the engine of %s, left by a server that was killed", base_model)
                process.terminate(self._settings.stop_grace_seconds)
                ended.append(base_model)
        return ended

    def _engine(self, base_model: str) -> Engine:
        if not NAME_PATTERN.fullmatch(base_model):
            raise EngineError("engine_unavailable", f"{base_model!r} is not the name of a base model")
        with self._lock:
            if base_model not in self._engines:
                self._engines[base_model] = Engine(
                    self._settings, base_model, self._build_command, self._stopping
                )
            return self._engines[base_model]
