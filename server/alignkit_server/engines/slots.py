"""Limits which engines run at once, and decides which one is stopped for another."""

import threading
import time
from collections.abc import Callable

from alignkit_server.engines.errors import EngineError

WAKE_SECONDS = 0.5


class Slots:
    """Slots for engines, by name. Thread-safe.

    An engine in use keeps its slot. The engine idle longest is stopped for another. If there are several slots, one
    is never given to the engine of a project's own model, because base models serve all projects.
    """

    def __init__(
        self,
        limit: int | None,
        stop: Callable[[str], None],
        stopping: threading.Event,
        *,
        is_shared: Callable[[str], bool] = lambda _name: True,
    ) -> None:
        """`stop` stops an engine and may block; `is_shared` tells whether an engine belongs to a base model."""
        self._limit = limit
        self._is_shared = is_shared
        self._stop = stop
        self._stopping = stopping
        self._changed = threading.Condition()
        self._taken: dict[str, float] = {}
        """Time of last use of each engine, on the monotonic clock."""
        self._ending: set[str] = set()
        self._users: dict[str, int] = {}

    def hold(self, name: str) -> None:
        """Count one more user of the engine, running or not."""
        with self._changed:
            self._users[name] = self._users.get(name, 0) + 1

    def release(self, name: str) -> None:
        """Count one user less."""
        with self._changed:
            self._users[name] -= 1
            if not self._users[name]:
                del self._users[name]
            if name in self._taken:
                self._taken[name] = time.monotonic()
            self._changed.notify_all()

    def users(self) -> dict[str, int]:
        """The number of users of each engine that has some."""
        with self._changed:
            return dict(self._users)

    def take(self, name: str, wait_seconds: float) -> None:
        """Reserve a slot for an engine that the caller holds; if none is free, stop the engine idle longest.

        Raises EngineError if no slot becomes free within `wait_seconds`.
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
        """Free the slot of an engine that did not start or was stopped."""
        with self._changed:
            self._taken.pop(name, None)
            self._changed.notify_all()

    def is_ending(self, name: str) -> bool:
        """Whether the engine is being stopped as idle. An engine that is held and not ending keeps running."""
        with self._changed:
            return name in self._ending

    def end_idle(self, seconds: float) -> None:
        """Stop the engines that have been idle for `seconds`."""
        while True:
            with self._changed:
                before = time.monotonic() - seconds
                idle = [name for name in self._idle() if self._taken[name] <= before]
                if not idle:
                    return
                self._ending.add(idle[0])
            self._end(idle[0])

    def _try(self, name: str) -> str | None:
        """None if the slot is reserved now; else the engine to stop for it, or "" if none can be stopped."""
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
        """Whether one more engine of a project's own model would leave no slot for a base model."""
        if self._limit is None or self._limit == 1 or self._is_shared(name):
            return False
        return sum(not self._is_shared(one) for one in self._taken) >= self._limit - 1

    def _idle(self) -> list[str]:
        """Names of the idle engines, longest idle first."""
        idle = [name for name in self._taken if name not in self._users and name not in self._ending]
        return sorted(idle, key=self._taken.__getitem__)

    def _end(self, name: str) -> None:
        self._stop(name)
        with self._changed:
            self._ending.discard(name)
            self._taken.pop(name, None)
            self._changed.notify_all()
