"""Which engines may run at once: a limit, and who makes room for another."""

import threading
import time
from collections.abc import Callable

from alignkit_server.engines.errors import EngineError

WAKE_SECONDS = 0.5


class Slots:
    """Slots for engines, by name. Thread-safe.

    An engine that is in use keeps its slot. The one idle longest makes room for another. One slot, of several, is
    never given to the engine of a project's own model: base models serve everybody.
    """

    def __init__(
        self,
        limit: int | None,
        stop: Callable[[str], None],
        stopping: threading.Event,
        *,
        is_shared: Callable[[str], bool] = lambda _name: True,
    ) -> None:
        """`stop` ends an engine, and may take its time; `is_shared` tells a base model's."""
        self._limit = limit
        self._is_shared = is_shared
        self._stop = stop
        self._stopping = stopping
        self._changed = threading.Condition()
        self._taken: dict[str, float] = {}
        """When each was last used, by the monotonic clock."""
        self._ending: set[str] = set()
        self._users: dict[str, int] = {}

    def hold(self, name: str) -> None:
        """Count one more user of that engine, running or not."""
        with self._changed:
            self._users[name] = self._users.get(name, 0) + 1

    def release(self, name: str) -> None:
        """Count one less."""
        with self._changed:
            self._users[name] -= 1
            if not self._users[name]:
                del self._users[name]
            if name in self._taken:
                self._taken[name] = time.monotonic()
            self._changed.notify_all()

    def take(self, name: str, wait_seconds: float) -> None:
        """Reserve a slot for an engine that the caller holds; if none is free, evict the one idle longest.

        Raises EngineError if none becomes free.
        """
        deadline = time.monotonic() + wait_seconds
        while (idlest := self._try(name)) is not None:
            if idlest:
                self._end(idlest)
            elif self._stopping.is_set():
                raise EngineError("engine_stopped", "the service is shutting down")
            elif time.monotonic() > deadline:
                raise EngineError("engine_busy", f"all {self._limit} engines are in use; try again later")
            else:
                with self._changed:
                    self._changed.wait(WAKE_SECONDS)

    def give_back(self, name: str) -> None:
        """Free the slot of an engine that did not start."""
        with self._changed:
            self._taken.pop(name, None)
            self._changed.notify_all()

    def is_ending(self, name: str) -> bool:
        """Whether that engine is being ended for want of use; one that is held and is not stays."""
        with self._changed:
            return name in self._ending

    def end_idle(self, seconds: float) -> None:
        """End the engines that nobody used for so long."""
        while True:
            with self._changed:
                before = time.monotonic() - seconds
                idle = [name for name in self._idle() if self._taken[name] <= before]
                if not idle:
                    return
                self._ending.add(idle[0])
            self._end(idle[0])

    def _try(self, name: str) -> str | None:
        """None if the slot is reserved now; else the engine to end for it, or "" if none can be ended."""
        with self._changed:
            if name in self._ending:
                return ""
            kind_is_full = self._kind_is_full(name)
            room = self._limit is None or len(self._taken) < self._limit
            if name in self._taken or (room and not kind_is_full):
                self._taken[name] = time.monotonic()
                return None
            idle = [one for one in self._idle() if not kind_is_full or not self._is_shared(one)]
            if not idle:
                return ""
            self._ending.add(idle[0])
            return idle[0]

    def _kind_is_full(self, name: str) -> bool:
        """Whether one more of the projects' own models would leave no slot for a base model."""
        if self._limit is None or self._limit == 1 or self._is_shared(name):
            return False
        return sum(not self._is_shared(one) for one in self._taken) >= self._limit - 1

    def _idle(self) -> list[str]:
        """Names of the engines that are not in use, longest unused first."""
        idle = [name for name in self._taken if name not in self._users and name not in self._ending]
        return sorted(idle, key=self._taken.__getitem__)

    def _end(self, name: str) -> None:
        self._stop(name)
        with self._changed:
            self._ending.discard(name)
            self._taken.pop(name, None)
            self._changed.notify_all()
