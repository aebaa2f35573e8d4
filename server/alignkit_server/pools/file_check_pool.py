"""Threads that read data files for requests: few, so that file checks never hold up other requests."""

from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

AT_ONCE = 4
OF_A_PROJECT = 2
"""Threads per project: fewer than AT_ONCE, so that one project's files do not block another's."""

T = TypeVar("T")


class FileCheckPool:
    """Runs file checks, which take seconds, in their own threads instead of those that all routes share."""

    def __init__(self) -> None:
        self._all = CapacityLimiter(AT_ONCE)
        self._by_project: dict[str, CapacityLimiter] = defaultdict(lambda: CapacityLimiter(OF_A_PROJECT))

    async def run(self, project_id: str, work: Callable[[], T]) -> T:
        """The result of `work`, run when the project has a free slot. Waiting for a slot uses no thread."""
        async with self._by_project[project_id]:
            return await to_thread.run_sync(work, limiter=self._all)
