"""Events of an engine's stream on their way to the client: whole, and never long in the event loop."""

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from alignkit_server.chat.errors import engine_lost
from alignkit_server.chat.gateway import relay_events

CHUNK_BYTES = 64 * 2**10
MANY = 2**30


async def relayed(events: bytes, chunk_bytes: int, pauses: list[float]) -> list[bytes]:
    """What comes of `events` in chunks; `pauses` gets the seconds of computation after each chunk."""

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(events), chunk_bytes):
            before = time.thread_time()
            yield events[start : start + chunk_bytes]
            pauses.append(time.thread_time() - before)

    upstream: Any = SimpleNamespace(content=SimpleNamespace(iter_any=chunks))
    return [piece async for piece in relay_events(upstream, engine_lost("tiny"), MANY)]


@pytest.mark.parametrize("text", [b"x", b'ab", "error": 1, "'])
def test_a_large_event_costs_no_more_than_its_bytes(text: bytes) -> None:
    events = b'data: {"t": ["' + text * (16 * 2**20 // len(text)) + b'"]}\n\n'
    pauses: list[float] = []
    pieces = asyncio.run(relayed(events, CHUNK_BYTES, pauses))
    assert b"".join(pieces) == events
    assert max(map(len, pieces)) <= 2**18
    assert sum(pauses) < 0.5  # copied at each chunk it takes seconds
    assert max(pauses) < 0.1


@pytest.mark.parametrize("chunk_bytes", range(1, 9))
def test_events_are_whole_wherever_their_chunks_end(chunk_bytes: int) -> None:
    events = b"data: 1\n\ndata: 22\n\ndata: 333\n\n"
    pieces = asyncio.run(relayed(events + b"rest", chunk_bytes, []))
    assert b"".join(pieces) == events + b"rest"
    assert all(piece.endswith(b"\n\n") for piece in pieces[:-1])
    assert pieces[-1] == b"rest"
