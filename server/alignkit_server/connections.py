"""Limits per connection, enforced before a request is known: how many, how long each may idle or stall.

A proxy in front limits these too (docs/deploy.md), but the service must be safe without one: an open connection
costs its client nothing, and costs the service a file handle, memory and a slot.
"""

import asyncio
import resource
from typing import Any

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from alignkit_server.settings import Settings

MAX_HEAD_BYTES = 64 * 2**10
"""Maximum size of a request line and its headers together."""
MAX_SURPLUS_BYTES = 64 * 2**20
"""Maximum bytes read of a body that is still arriving after its request was answered."""
OTHER_FILES = 256
"""File handles reserved for everything except connections."""


def server_config(app: ASGIApp, settings: Settings, **options: Any) -> uvicorn.Config:
    """uvicorn's configuration for `app`, with the limits of `settings`. Websockets are off: nothing uses them."""
    most = min(settings.max_connections, raise_file_limit() - OTHER_FILES)

    class Bounded(BoundedProtocol):
        max_connections = max(most, 1)
        head_seconds = settings.request_head_seconds
        stall_seconds = settings.stall_seconds

    return uvicorn.Config(app, log_config=None, http=Bounded, ws="none", **options)


def raise_file_limit() -> int:
    """Raise this process's limit on open files to its hard limit, and return that limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 2**20


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with a maximum number of connections, which also closes stalled ones.

    At the maximum, a new connection replaces the one that has been without a request for longest.
    """

    max_connections = 1000
    head_seconds = 30.0
    """Seconds from the start of a connection, or from its last answer, to the end of the next request's headers."""
    stall_seconds = 60.0
    """Seconds a client may go without reading an answer, or without sending a body that the service waits for."""

    idle = False
    """Whether no request on this connection is waiting for its answer."""
    idle_since = 0.0
    _reading = False
    """Whether the body of the current request has not been read to its end."""
    _size = 0
    _head_bytes = 0
    _surplus_bytes = 0
    _timer: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections and not self._make_room():
            self._refuse(503, "All connections are in use.")
            return
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._await_nothing()
        self._writes_again()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self.idle and self._reading:  # answered early; the rest of the body still arrives
            self._surplus_bytes += len(data)
            if self._surplus_bytes > MAX_SURPLUS_BYTES:
                self.abort()
                return
        elif self.idle:
            self._head_bytes += len(data)
        elif self._reading:
            self._await_body()
        super().data_received(data)
        too_long = self._head_bytes > MAX_HEAD_BYTES
        if self.idle and not self._reading and too_long and not self.transport.is_closing():
            self._refuse(431, f"Expected at most {MAX_HEAD_BYTES} bytes of headers.")

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._size += len(name) + len(value)
        if self._size > MAX_HEAD_BYTES:
            raise httptools.HttpParserError("too many headers")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._size = 0

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.idle, self._reading = False, True
        self._head_bytes = self._surplus_bytes = 0
        self._await_body()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._reading = False
        if not self.idle:
            self._await_nothing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # no pipelined request has started
            self._await_request()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(self.stall_seconds, self.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._writes_again()

    def _await_request(self) -> None:
        self._await_nothing()
        self.idle, self.idle_since = True, self.loop.time()
        self._timer = self.loop.call_later(self.head_seconds, self.abort)

    def _await_body(self) -> None:
        self._await_nothing()
        self._timer = self.loop.call_later(self.stall_seconds, self._body_stalls)

    def _await_nothing(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _body_stalls(self) -> None:
        """Abort a connection whose body stopped arriving, unless the service itself paused reading."""
        if self.flow.read_paused:
            self._await_body()
        elif self._reading:
            self.abort()

    def _writes_again(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _make_room(self) -> bool:
        """Abort the connection that has been without a request for longest; False if every one has a request."""
        idle = [one for one in self.connections if isinstance(one, BoundedProtocol) and one.idle]
        if not idle:
            return False
        min(idle, key=lambda one: one.idle_since).abort()
        return True

    def abort(self) -> None:
        """Close the connection immediately."""
        self.idle = False
        self.connections.discard(self)  # now, so the rest of this loop iteration does not count it
        if not self.transport.is_closing():
            self.transport.abort()

    def _refuse(self, status: int, message: str) -> None:
        self.idle = False
        head = b"content-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(message)
        self.transport.write(STATUS_LINE[status] + head + message.encode())
        self.transport.close()
