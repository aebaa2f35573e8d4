"""Fair access to what all projects share: none gets all of it, and waiting projects take turns.

An engine serves requests in order of arrival, and so does the event loop: one queued there waits behind everything
sent before. Here a request begins only when it can start, and the next to start belongs to the project with the
fewest running sequences.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

TURN_SECONDS = 1.0
"""After which a request goes on without its turn at the service."""


@dataclass(frozen=True, slots=True)
class Load:
    """The part of an engine that a request occupies; elsewhere a request is one sequence."""

    sequences: int
    tokens: int = 0


@dataclass(eq=False, slots=True)
class _Waiting:
    load: Load
    most_tokens: int | None
    begun: asyncio.Future[None]
    number: int
    """Number in order of arrival; breaks ties between projects with equally many running sequences."""


@dataclass(slots=True)
class _Project:
    sequences: int = 0
    tokens: int = 0
    waiting: deque[_Waiting] = field(default_factory=deque)


class Turns:
    """The sequence slots of one engine, or of the service itself. For use in one event loop."""

    def __init__(self, capacity: int) -> None:
        """`capacity` is the number of sequences that are processed at once."""
        self._capacity = capacity
        self.share = share_of(capacity)
        self._sequences = 0
        self._arrived = 0
        self._projects: dict[str, _Project] = {}

    async def take(self, project_id: str, load: Load, most_tokens: int | None = None) -> None:
        """Wait until `load` may start; end it with `release`.

        A project may run at most `share` sequences and `most_tokens` tokens; a single request alone may exceed both.
        """
        project = self._projects.setdefault(project_id, _Project())
        self._arrived += 1
        place = _Waiting(load, most_tokens, asyncio.get_running_loop().create_future(), self._arrived)
        project.waiting.append(place)
        self._begin()
        try:
            await place.begun
        except asyncio.CancelledError:
            if place.begun.done() and not place.begun.cancelled():
                self.release(project_id, load)
            else:
                project.waiting.remove(place)
                self._begin()
                self._forget(project_id)
            raise

    def release(self, project_id: str, load: Load) -> None:
        """Free the slots of a request."""
        project = self._projects[project_id]
        project.sequences -= load.sequences
        project.tokens -= load.tokens
        self._sequences -= load.sequences
        self._begin()
        self._forget(project_id)

    def _begin(self) -> None:
        """Start the requests whose turn it is. A request that does not fit yet is not overtaken by others."""
        while True:
            ready = [
                project
                for project in self._projects.values()
                if project.waiting and self._within_share(project, project.waiting[0])
            ]
            if not ready:
                return
            project = min(ready, key=lambda one: (one.sequences, one.waiting[0].number))
            place = project.waiting[0]
            if self._sequences and self._sequences + place.load.sequences > self._capacity:
                return
            project.waiting.popleft()
            project.sequences += place.load.sequences
            project.tokens += place.load.tokens
            self._sequences += place.load.sequences
            place.begun.set_result(None)

    def _within_share(self, project: _Project, place: _Waiting) -> bool:
        if not project.sequences:
            return True
        if project.sequences + place.load.sequences > self.share:
            return False
        return place.most_tokens is None or project.tokens + place.load.tokens <= place.most_tokens

    def _forget(self, project_id: str) -> None:
        project = self._projects.get(project_id)
        if project is not None and not project.sequences and not project.waiting:
            del self._projects[project_id]


def share_of(capacity: int) -> int:
    """The number of sequences that one project may use: an eighth is left for the others."""
    return max(1, capacity - max(1, capacity // 8))


class Turn:
    """A request's turn at the service, from its creation until `end`, at most for TURN_SECONDS."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release
        self._timer = asyncio.get_running_loop().call_later(TURN_SECONDS, self.end)

    def end(self) -> None:
        """Let another request begin; does nothing the second time."""
        self._timer.cancel()
        release, self._release = self._release, None
        if release is not None:
            release()


current_turn: ContextVar[Turn | None] = ContextVar("current_turn", default=None)


def end_turn() -> None:
    """Let another request begin, before this one waits for an engine, a peer, a body or a process of its own.

    Call it in the event loop. It does nothing outside a request.
    """
    turn = current_turn.get()
    if turn is not None:
        turn.end()
