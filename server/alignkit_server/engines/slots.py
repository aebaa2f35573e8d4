"""Limits which engines run at once, and decides which one is stopped for another."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable

from alignkit_server.engines.errors import EngineError

WAKE_SECONDS = 0.5
TURN_SECONDS = 120.0
"""Seconds that an engine has been ready, and another project waited, before one project's use of it makes room."""


class Slots:
    """Slots for engines, by name. Thread-safe.

    The engine idle longest is stopped for another. An engine in use keeps its slot, except that one which a single
    project uses gives way after its turn to one for which another project waits. The one that waits for longest is
    next. If there are several slots, one is never given to the engine of a project's own model, because base models
    serve all projects.
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
        self._ready_since: dict[str, float] = {}
        self._ending: dict[str, str] = {}
        """Engines that are being stopped, and for which other; "" for none."""
        self._waiting: Counter[str] = Counter()
        """Requests for a slot by engine, in the order of the engines' first."""
        self._users: dict[str, Counter[str]] = {}
        """Users of each engine by project; "" is none."""

    def hold(self, name: str, project_id: str = "") -> None:
        """Count one more user of the engine, running or not."""
        with self._changed:
            self._users.setdefault(name, Counter())[project_id] += 1

    def release(self, name: str, project_id: str = "") -> None:
        """Count one user less."""
        with self._changed:
            users = self._users[name]
            users[project_id] -= 1
            self._users[name] = +users
            if not self._users[name]:
                del self._users[name]
            if name in self._taken:
                self._taken[name] = time.monotonic()
            self._changed.notify_all()

    def users(self) -> dict[str, int]:
        """The number of users of each engine that has some."""
        with self._changed:
            return {name: users.total() for name, users in self._users.items()}

    def take(self, name: str, wait_seconds: float) -> None:
        """Reserve a slot for an engine that the caller holds; if none is free, stop another engine.

        Raises EngineError if no slot becomes free within `wait_seconds`.
        """
        with self._changed:
            self._waiting[name] += 1
        try:
            self._take(name, wait_seconds)
        finally:
            with self._changed:
                self._waiting[name] -= 1
                if not self._waiting[name]:
                    del self._waiting[name]
                self._changed.notify_all()

    def _take(self, name: str, wait_seconds: float) -> None:
        began = time.monotonic()
        while (other := self._try(name, time.monotonic() - began)) is not None:
            if other:
                self._end(other)
            elif self._stopping.is_set():
                raise EngineError("engine_stopped", "the service is shutting down")
            elif time.monotonic() > began + wait_seconds:
                raise EngineError(
                    "engine_busy",
                    f"all {self._limit} engines are in use; try again later, or let the server's operator raise "
                    "ALIGNKIT_ENGINE__MAX_ENGINES",
                )
            else:
                with self._changed:
                    self._changed.wait(WAKE_SECONDS)

    def begin_turn(self, name: str) -> None:
        """Count the engine's turn from now, when it is ready, unless it was already."""
        with self._changed:
            if name in self._taken:
                self._ready_since.setdefault(name, time.monotonic())

    def give_back(self, name: str) -> None:
        """Free the slot of an engine that did not start or was stopped."""
        with self._changed:
            self._free(name)

    def is_ending(self, name: str) -> bool:
        """Whether the engine is being stopped for another. An engine that is held and not ending keeps running."""
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
                self._ending[idle[0]] = ""
            self._end(idle[0])

    def _try(self, name: str, waited: float) -> str | None:
        """None if the slot is reserved now; else the engine to stop for it, or "" if none can be stopped."""
        with self._changed:
            if name in self._ending or name in self._ending.values():
                return ""
            kind_is_full = self._kind_is_full(name)
            is_next = self._is_next(name)
            room = self._limit is None or (is_next and len(self._taken) < self._limit)
            if name in self._taken or (room and not kind_is_full):
                self._taken[name] = time.monotonic()
                return None
            others = (self._idle() if is_next else []) + (self._over(name) if waited >= TURN_SECONDS else [])
            other = next((one for one in others if not kind_is_full or not self._is_shared(one)), "")
            if other:
                self._ending[other] = name
            return other

    def _is_next(self, name: str) -> bool:
        """Whether no other engine that could have the slot is waited for longer."""
        served = {*self._taken, *self._ending, *self._ending.values()}
        for one in self._waiting:
            if one == name:
                return True
            if one not in served and (self._kind_is_full(name) or not self._kind_is_full(one)):
                return False
        return True

    def _kind_is_full(self, name: str) -> bool:
        """Whether one more engine of a project's own model would leave no slot for a base model."""
        if self._limit is None or self._limit == 1 or self._is_shared(name):
            return False
        return sum(not self._is_shared(one) for one in self._taken) >= self._limit - 1

    def _idle(self) -> list[str]:
        """Names of the idle engines, longest idle first."""
        idle = [name for name in self._taken if name not in self._users and name not in self._ending]
        return sorted(idle, key=self._taken.__getitem__)

    def _over(self, name: str) -> list[str]:
        """Names of the engines whose turn is over for a project that waits for `name`, longest ready first."""
        before, waiting = time.monotonic() - TURN_SECONDS, self._projects(name)
        over = [
            one
            for one in self._taken
            if one not in self._ending
            and self._ready_since.get(one, math.inf) <= before
            and len(self._projects(one)) == 1
            and waiting - self._projects(one)
        ]
        return sorted(over, key=self._ready_since.__getitem__)

    def _projects(self, name: str) -> set[str]:
        return set(self._users.get(name, ())) - {""}

    def _end(self, name: str) -> None:
        self._stop(name)
        with self._changed:
            heir = self._ending.pop(name)
            # At once: requests that still wait for the engine that ended would take the slot again.
            if heir and name in self._taken:
                self._taken[heir] = time.monotonic()
            self._free(name)

    def _free(self, name: str) -> None:
        self._taken.pop(name, None)
        self._ready_since.pop(name, None)
        self._changed.notify_all()
