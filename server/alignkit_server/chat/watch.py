"""Detects an engine whose structured output hangs while it answers everything else, and replaces it.

vLLM compiles the schemas and grammars of all requests in one place. A compilation that never ends blocks every other
structured answer but no plain one, so neither the process nor its health route shows the problem.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import aiohttp
from anyio import CapacityLimiter, to_thread

ASK_SECONDS = 30.0
"""Time limit of each test request."""
QUESTION: dict[str, Any] = {"prompt": [1, 2, 3], "max_tokens": 1, "temperature": 0}
STRUCTURED: dict[str, Any] = {"structured_outputs": {"choice": ["a", "b"]}}

logger = logging.getLogger(__name__)


class Replacing(Protocol):
    """The part of EngineManager that is used here."""

    def replace(self, model: str) -> bool:
        """End the engine, so that the next request starts another. Returns False for an external engine."""


class StructuredWatch:
    """Tests each engine that has worked on structured requests for `patience` seconds. For one event loop."""

    def __init__(
        self, engines: Replacing, client: Callable[[], aiohttp.ClientSession], patience: float
    ) -> None:
        self._engines = engines
        self._client = client
        self._patience = patience
        self._open: Counter[str] = Counter()
        self._watching: dict[str, asyncio.Task[None]] = {}

    def begin(self, engine: str, url: str) -> Callable[[], None]:
        """Count one structured request at the engine, and return what to call once it is over."""
        self._open[engine] += 1
        if engine not in self._watching:
            self._watching[engine] = asyncio.create_task(self._watch(engine, url))
        return lambda: self._end(engine)

    async def aclose(self) -> None:
        """Stop watching."""
        for task in self._watching.values():
            task.cancel()
        await asyncio.gather(*self._watching.values(), return_exceptions=True)

    def _end(self, engine: str) -> None:
        self._open[engine] -= 1
        if self._open[engine] <= 0:
            del self._open[engine]
            task = self._watching.pop(engine, None)
            if task is not None:
                task.cancel()

    async def _watch(self, engine: str, url: str) -> None:
        while True:
            await asyncio.sleep(self._patience)
            if await self._stands_still(engine, url):
                self._watching.pop(engine, None)  # first: ending the waiting requests would cancel this task
                logger.error("structured output of the engine of %s hangs: replacing it", engine)
                own_thread = CapacityLimiter(1)  # it waits where the engine just starts again
                if not await to_thread.run_sync(self._engines.replace, engine, limiter=own_thread):
                    logger.error("the engine of %s is external and must be restarted by its operator", engine)
                return

    async def _stands_still(self, engine: str, url: str) -> bool:
        """Whether it answers a plain request but not a structured one. One that answers neither is only busy."""
        question = QUESTION | {"model": engine}
        plain, structured = await asyncio.gather(
            self._answers(url, question), self._answers(url, question | STRUCTURED)
        )
        return plain and not structured

    async def _answers(self, url: str, question: dict[str, Any]) -> bool:
        timeout = aiohttp.ClientTimeout(total=ASK_SECONDS)
        try:
            async with self._client().post(f"{url}/v1/completions", json=question, timeout=timeout) as answer:
                await answer.read()
                return True
        except (aiohttp.ClientError, TimeoutError):
            return False
