"""Slots in which data files are read for a request: few, so that no number of files holds up other requests."""

from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

AT_ONCE = 4
OF_A_PROJECT = 2
"""Fewer than there are, so that one project's files do not keep another's waiting."""

T = TypeVar("T")


class FileCheckPool:
    """Runs what reads data files, for seconds, in threads beside those that all routes share."""

    def __init__(self) -> None:
        self._all = CapacityLimiter(AT_ONCE)
        self._by_project: dict[str, CapacityLimiter] = defaultdict(lambda: CapacityLimiter(OF_A_PROJECT))

    async def run(self, project_id: str, work: Callable[[], T]) -> T:
        """The result of `work`, run once the project has a slot; waiting for one takes no thread."""
        async with self._by_project[project_id]:
            return await to_thread.run_sync(work, limiter=self._all)
