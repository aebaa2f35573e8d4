"""A server's heartbeat, and the recovery of work from servers whose heartbeat stopped.

On the same machine, a server counts as dead as soon as its process is gone; on another machine, after this server has
looked for `TIMEOUT_SECONDS` and seen no new heartbeat. Clocks are not compared, and an outage of the database, during
which nobody can send one, restarts the count: else the first server to reconnect would take the others for dead.
"""

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence

import psutil
import structlog
from sqlalchemy import delete, select, update

from alignkit_server.clock import now
from alignkit_server.database import Database
from alignkit_server.engines.process import runs
from alignkit_server.ids import SERVER, new_id
from alignkit_server.repeating import Repeating
from alignkit_server.tables import Peer

BEAT_SECONDS = 2.0
TIMEOUT_SECONDS = 30.0
GAP_SECONDS = 5 * BEAT_SECONDS
"""Seconds between two checks above which heartbeats in between could have been missed."""
JOIN_SECONDS = 10.0

log = structlog.get_logger()


class Heartbeat:
    """Updates this server's row, and calls `recover` with the ids of dead servers before deleting their rows.

    `recover` may be called twice with the same ids, also by two servers. With `anywhere`, servers on other machines
    are included.
    """

    def __init__(self, database: Database, recover: Callable[[list[str]], None], *, anywhere: bool) -> None:
        self._database = database
        self._recover = recover
        self._anywhere = anywhere
        self._beating = Repeating("heartbeat", self._beat_and_look, BEAT_SECONDS, join_seconds=JOIN_SECONDS)
        self.id = new_id(SERVER)
        self._looked_at = 0.0
        self._last_seen: dict[str, tuple[int, float]] = {}
        """Server -> its last heartbeat, and the time this server first saw it, on the monotonic clock."""

    def register(self) -> None:
        """Register this server, before it takes on any work."""
        process = psutil.Process()
        row = Peer(id=self.id, host=socket.gethostname(), pid=process.pid, started=process.create_time())
        row.beat_at = now()
        with self._database.writing() as session:
            session.add(row)

    def start(self) -> None:
        """Take over the work of dead servers, now and regularly from now on."""
        self.look()
        self._beating.start()

    def stop(self) -> None:
        """Stop the heartbeat."""
        self._beating.stop()

    def sign_off(self) -> None:
        """Mark this server as stopped, so that others take over its work."""
        with self._database.writing() as session:
            session.execute(update(Peer).where(Peer.id == self.id).values(beat_at=0))

    def look(self) -> None:
        """Recover the work of every dead server."""
        dead = self._dead()
        if dead:
            log.warning("taking over the jobs of dead servers", servers=dead)
            self._recover(list(dead))
            with self._database.writing() as session:
                session.execute(delete(Peer).where(Peer.id.in_(dead)))

    def _dead(self) -> Sequence[str]:
        with self._database.reading() as session:
            others = session.scalars(select(Peer).where(Peer.id != self.id)).all()
        instant, before = time.monotonic(), self._looked_at
        self._looked_at = instant
        if instant - before > GAP_SECONDS:
            self._last_seen.clear()
        self._last_seen = {
            peer.id: known
            if (known := self._last_seen.get(peer.id)) and known[0] == peer.beat_at
            else (peer.beat_at, instant)
            for peer in others
        }
        return [peer.id for peer in others if self._is_dead(peer)]

    def _is_dead(self, peer: Peer) -> bool:
        if peer.host == socket.gethostname():
            return peer.beat_at == 0 or not runs(peer.pid, peer.started)
        silent = time.monotonic() - self._last_seen[peer.id][1] > TIMEOUT_SECONDS
        return self._anywhere and (peer.beat_at == 0 or silent)

    def _beat(self) -> None:
        change = update(Peer).where(Peer.id == self.id).values(beat_at=now()).returning(Peer.id)
        with self._database.writing() as session:
            known = session.execute(change).all()
        if not known:  # another server has its jobs: two servers must not work on them
            log.error("another server considered this one dead and took over its jobs: shutting down")
            os.kill(os.getpid(), signal.SIGTERM)

    def _beat_and_look(self) -> None:
        self._beat()
        self.look()
