"""A job's events as server-sent events: from the start or after a given event, until the job ends or the key does."""

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial

import anyio
from fastapi.sse import format_sse_event

from alignkit_server.database import Database
from alignkit_server.errors import ApiError
from alignkit_server.job_status import FINISHED
from alignkit_server.jobs.presenting import present_event
from alignkit_server.jobs.repository import EventRepository, JobRepository
from alignkit_server.keys.service import Principal, is_valid
from alignkit_server.pools.listening import SharedLooks
from alignkit_server.tables import Event

POLL_SECONDS = 0.5
KEY_SECONDS = 5.0
"""Seconds for which a stream may outlive its key."""
KEEP_ALIVE_SECONDS = 15.0
BATCH = 200


@dataclass(frozen=True, slots=True)
class EventStream:
    """One listener to one job. Every database query is short and runs off the event loop."""

    database: Database
    looks: SharedLooks
    listener: Principal
    job_id: str
    position: int
    type: str | None = None
    """The event type to send, message or metrics; None for all."""

    @classmethod
    def open(
        cls,
        database: Database,
        looks: SharedLooks,
        listener: Principal,
        job_id: str,
        *,
        last_event_id: str | None,
        type: str | None = None,  # noqa: A002 - OpenAI's name
    ) -> "EventStream":
        """Start after `last_event_id`. Raises 404 for an unknown job, 400 for an unknown event."""
        with database.reading() as session:
            JobRepository(session, listener.project_id).get(job_id)
            position: int | None = 0
            if last_event_id:
                position = EventRepository(session, listener.project_id).position(job_id, last_event_id)
        if position is None:
            raise ApiError(
                400,
                f"Last-Event-ID: expected the id of an event of the job {job_id}, found {last_event_id!r}.",
                param="Last-Event-ID",
            )
        return cls(database, looks, listener, job_id, position, type)

    def exhausted(self) -> bool:
        """Whether the job has ended and its last event was received, so a client need not reconnect."""
        events, over = self._look(self.position)
        return over and not events

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes of the stream: events as they occur, keep-alive comments in between."""
        position, quiet_since, checked = self.position, time.monotonic(), time.monotonic()
        while True:
            if time.monotonic() - checked >= KEY_SECONDS:
                if not await self._may_listen():
                    return
                checked = time.monotonic()
            what = (self.job_id, self.type, position)
            events, over = await self.looks.ask(what, partial(self._render, position), POLL_SECONDS / 2)
            for seq, rendered in events:
                yield rendered
                position, quiet_since = seq, time.monotonic()
            if len(events) == BATCH:
                continue
            if over:
                return
            if time.monotonic() - quiet_since >= KEEP_ALIVE_SECONDS:
                yield format_sse_event(comment="keep-alive")
                quiet_since = time.monotonic()
            await anyio.sleep(POLL_SECONDS)

    async def _may_listen(self) -> bool:
        """Whether the key that opened the stream is still valid: one query for all streams of the key."""
        key_id = self.listener.key_id
        valid: bool = await self.looks.ask(
            ("key", key_id), partial(is_valid, self.database, key_id), KEY_SECONDS / 2
        )
        return valid

    def _render(self, position: int) -> tuple[list[tuple[int, bytes]], bool]:
        """The next events in their sent form, rendered once for all listeners."""
        events, over = self._look(position)
        return [
            (event.seq, format_sse_event(data_str=present_event(event).model_dump_json(), id=event.id))
            for event in events
        ], over

    def _look(self, position: int) -> tuple[Sequence[Event], bool]:
        """The next events, and whether the job has ended, so that no event can follow them."""
        with self.database.reading() as session:
            # The order matters: a finished job gets no more events, so events read after its status are complete.
            over = JobRepository(session, self.listener.project_id).get(self.job_id).status in FINISHED
            events = EventRepository(session, self.listener.project_id)
            return events.following(self.job_id, position, BATCH, self.type), over
