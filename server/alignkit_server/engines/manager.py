"""All engines of the service: one per base or fully trained model, started on demand, stopped with the service."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from alignkit.errors import AlignkitError
from alignkit_server.confine import possible, refusal
from alignkit_server.engines.adapters import MODEL_NAME_PATTERN
from alignkit_server.engines.command import CommandBuilder, vllm_command
from alignkit_server.engines.engine import OWNER_MARK, Engine
from alignkit_server.engines.errors import EngineError
from alignkit_server.engines.facts import EngineFacts, EngineStatus, Lease
from alignkit_server.engines.process import ManagedProcess
from alignkit_server.engines.slots import Slots
from alignkit_server.settings import Settings

__all__ = ["EngineError", "EngineManager"]

REAP_SECONDS = 1.0

logger = logging.getLogger(__name__)


class EngineManager:
    """Starts, finds and stops the engine of each model that has its own. Thread-safe; every method may block.

    At most `engine.max_engines` run at once (see Slots). An idle engine is stopped to make room for another, or after
    `engine.idle_seconds`; on a GPU, the latest `engine.sleeping` of them sleep instead. If `engine.urls` names an
    external engine for a model, that engine answers.
    """

    def __init__(self, settings: Settings, *, build_command: CommandBuilder = vllm_command) -> None:
        """Raises AlignkitError where this system does not allow the confinement that the settings ask for."""
        if settings.engine.confine and not possible():
            raise AlignkitError(refusal("ALIGNKIT_ENGINE__CONFINE"))
        self._settings = settings
        self._build_command = build_command
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._engines: dict[str, Engine] = {}
        self._slots = Slots(settings.engine.max_engines, self._end, self._stopping, is_shared=self._is_base)
        self._reaper = threading.Thread(target=self._reap, name="engine-reaper", daemon=True)

    def endpoint(self, model: str, rank: int = 0) -> str:
        """The URL of `model`'s engine ("http://127.0.0.1:PORT"), starting it and waiting if needed.

        With `rank`, an engine that serves only adapters of smaller LoRA ranks is restarted once its requests have
        ended. Concurrent callers share one start. Raises EngineError; a failed start is remembered for some seconds.
        An engine that is not held may be stopped for another at any time.
        """
        if (url := self._settings.engine.urls.get(model)) is not None:
            return url.rstrip("/")
        engine = self._engine(model)
        with self.held(model):
            self._slots.take(model, self._settings.engine.start_timeout_seconds)
            try:
                url = engine.endpoint(rank)
            except EngineError:
                if engine.running_endpoint() is None:
                    self._slots.give_back(model)
                raise
            self._slots.begin_turn(model)
            return url

    def hold(self, model: str, project_id: str = "") -> None:
        """Keep `model`'s engine from being stopped as idle, until `release` was called as often as `hold`.

        If one project alone holds it, it still gives way, after its turn, to an engine that another project holds.
        """
        self._slots.hold(model, project_id)

    def release(self, model: str, project_id: str = "") -> None:
        """Undo one `hold`."""
        self._slots.release(model, project_id)

    @contextmanager
    def held(self, model: str, project_id: str = "") -> Iterator[None]:
        """Hold the engine during the context."""
        self.hold(model, project_id)
        try:
            yield
        finally:
            self.release(model, project_id)

    def lease(self, model: str, rank: int = 0) -> Lease | None:
        """A lease of `model`'s engine if it is ready now for adapters of this LoRA rank, else None; never waits.

        It is for one request, by a caller that holds the engine.
        """
        if (url := self._settings.engine.urls.get(model)) is not None:
            return Lease(url.rstrip("/"), lambda: None)
        engine = self._engines.get(model)
        return engine.lease(rank) if engine and not self._slots.is_ending(model) else None

    @contextmanager
    def leased(self, model: str, rank: int = 0, project_id: str = "") -> Iterator[str]:
        """The URL of `model`'s engine, held and leased during the context, started or restarted for it if needed."""
        with self.held(model, project_id):
            while (lease := self.lease(model, rank)) is None:
                self.endpoint(model, rank)
            try:
                yield lease.url
            finally:
                lease.end()

    def running_endpoint(self, model: str) -> str | None:
        """The URL of `model`'s engine if it is ready now, else None. Starts nothing and never waits."""
        if (url := self._settings.engine.urls.get(model)) is not None:
            return url.rstrip("/")
        engine = self._engines.get(model)
        return engine.running_endpoint() if engine and not self._slots.is_ending(model) else None

    def status(self, model: str) -> EngineStatus:
        """The status of `model`'s engine."""
        engine = self._engines.get(model)
        return engine.status() if engine else "stopped"

    def facts(self) -> list[EngineFacts]:
        """The external engines and every engine that was ever requested, by name."""
        with self._lock:
            engines = dict(self._engines)
        users = self._slots.users()
        external = [
            EngineFacts(model, "external", users.get(model, 0)) for model in self._settings.engine.urls
        ]
        own = [
            EngineFacts(model, engine.status(), users.get(model, 0), engine.failure())
            for model, engine in engines.items()
        ]
        return sorted([*external, *own], key=lambda one: one.model)

    def log_tail(self, model: str, count: int = 20) -> list[str]:
        """The last lines of the log of `model`'s engine, without paths."""
        engine = self._engines.get(model)
        return engine.log_tail(count) if engine else []

    def stop(self, model: str) -> None:
        """Stop `model`'s engine, if it runs, because the model was deleted."""
        with self._lock:
            engine = self._engines.pop(model, None)
        if engine is not None:
            engine.stop()
            self._slots.give_back(model)

    def replace(self, model: str) -> bool:
        """End `model`'s engine so that the next request starts another; False where it is run elsewhere."""
        if model in self._settings.engine.urls:
            return False
        self.stop(model)
        return True

    def shutdown(self) -> None:
        """Stop every engine, including those still starting; `endpoint` raises from then on."""
        self._stopping.set()
        with self._lock:
            engines = list(self._engines.values())
        if engines:
            with ThreadPoolExecutor(len(engines)) as pool:
                list(pool.map(Engine.stop, engines))

    def cleanup_leftovers(self) -> list[str]:
        """Stop the engines that a killed server left running; returns their models. Call it at start."""
        ended = []
        for identity_path in sorted(self._settings.engines_dir.glob("*.json")):
            model = identity_path.stem.partition(OWNER_MARK)[0]
            process = ManagedProcess.attach(identity_path, log_path=identity_path.with_suffix(".log"))
            if process is None:
                identity_path.unlink(missing_ok=True)
            elif not process.identity.owned_by_another() and not process.identity.owned_by_us():
                logger.warning("stopping the engine of %s, left behind by a killed server", model)
                process.terminate(self._settings.stop_grace_seconds)
                ended.append(model)
        return ended

    def _engine(self, model: str) -> Engine:
        if not MODEL_NAME_PATTERN.fullmatch(model):
            raise EngineError("engine_unavailable", f"{model!r} is not the name of a model")
        with self._lock:
            if self._settings.engine.idle_seconds is not None and self._reaper.ident is None:
                self._reaper.start()
            if model not in self._engines:
                self._engines[model] = Engine(self._settings, model, self._build_command, self._stopping)
            return self._engines[model]

    def _is_base(self, model: str) -> bool:
        return (self._settings.models_dir / model).is_dir()

    def _end(self, model: str) -> None:
        engine = self._engines.get(model)
        if engine is None:
            return
        logger.info("stopping the engine of %s, idle or for another", model)
        engine.rest()
        asked_for = self._slots.users()  # about to wake
        with self._lock:
            others = [one for name, one in self._engines.items() if name not in asked_for]
        asleep = [one for one in others if one.asleep_since is not None]
        asleep.sort(key=lambda one: one.asleep_since or 0.0)
        for one in asleep[: max(0, len(asleep) - self._settings.engine.sleeping)]:
            one.end_sleep()

    def _reap(self) -> None:
        seconds = self._settings.engine.idle_seconds or 0.0
        while not self._stopping.wait(min(REAP_SECONDS, max(seconds / 4, 0.01))):
            self._slots.end_idle(seconds)
