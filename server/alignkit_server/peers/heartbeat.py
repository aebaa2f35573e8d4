"""A server's heartbeat, and the recovery of work from servers whose heartbeat stopped.

On the same machine, a server counts as dead as soon as its process is gone; on another machine, after it has sent
no heartbeat for `TIMEOUT_SECONDS`.
"""

import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence

import psutil
import structlog
from sqlalchemy import delete, select, update

from alignkit_server.clock import now
from alignkit_server.database import Database
from alignkit_server.engines.process import runs
from alignkit_server.ids import SERVER, new_id
from alignkit_server.tables import Peer

BEAT_SECONDS = 2.0
TIMEOUT_SECONDS = 30

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
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.id = new_id(SERVER)

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
        self._thread.start()

    def stop(self) -> None:
        """Stop the heartbeat."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

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
        return [peer.id for peer in others if self._is_dead(peer)]

    def _is_dead(self, peer: Peer) -> bool:
        if peer.host == socket.gethostname():
            return peer.beat_at == 0 or not runs(peer.pid, peer.started)
        return self._anywhere and now() - peer.beat_at > TIMEOUT_SECONDS

    def _beat(self) -> None:
        change = update(Peer).where(Peer.id == self.id).values(beat_at=now()).returning(Peer.id)
        with self._database.writing() as session:
            known = session.execute(change).all()
        if not known:  # another server has its jobs: two servers must not work on them
            log.error("another server considered this one dead and took over its jobs: shutting down")
            os.kill(os.getpid(), signal.SIGTERM)

    def _run(self) -> None:
        while not self._stopping.wait(BEAT_SECONDS):
            try:
                self._beat()
                self.look()
            except Exception:
                log.exception("the heartbeat failed; trying again")
