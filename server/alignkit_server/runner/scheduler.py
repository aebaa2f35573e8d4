"""Whose turn it is: projects take turns, and within a project jobs go in order.

A free slot goes to the project that has waited longest since its last turn, so a project with a thousand jobs delays
another's first one by at most one. Turns are stored with the jobs before the durable queue hears of them; a server
that is killed in between hands them over when it starts again.
"""

import threading
from collections.abc import Callable, Sequence

import structlog

from alignkit_server.database import Database
from alignkit_server.jobs.queue import Queue
from alignkit_server.limits.quotas import limits_of
from alignkit_server.settings import Settings
from alignkit_server.tables import Job

POLL_SECONDS = 0.2

log = structlog.get_logger()


class FairQueue:
    """Gives out the slots. Thread-safe, also between servers of one database."""

    def __init__(
        self, database: Database, settings: Settings, capacity: Callable[[], int | None] = lambda: None
    ) -> None:
        """`capacity` returns how many runs the executor can take now; None if only the slots count."""
        self._database = database
        self._slots = settings.training_slots
        self._capacity = capacity
        self._limits = settings.limits

    def take(self) -> Sequence[str]:
        """Give the free slots away; returns every job that has a turn and has not started, in order."""
        capacity = self._capacity()
        slots = self._slots if capacity is None else min(self._slots, capacity)
        with self._database.reading() as session:  # most looks find nothing to do, and need no writer's turn
            queue = Queue(session)
            if queue.taken() >= slots or not queue.waiting():
                return queue.called()
        with self._database.writing() as session:
            queue = Queue(session)
            queue.lock()
            for _ in range(slots - queue.taken()):
                job = self._next(queue)
                if job is None:
                    break
                queue.give_turn(job)
            return queue.called()

    def begun(self) -> Sequence[str]:
        """Every unfinished job that has a turn, in order."""
        with self._database.reading() as session:
            return Queue(session).called(started=True)

    def _next(self, queue: "Queue") -> Job | None:
        """The first job of the project to serve next; None if no project may start another."""
        projects, running = queue.waiting(), queue.running()
        last = queue.last_turns(project.id for project, _ in projects)
        candidates = [
            (last.get(project.id, 0), first, project.id)
            for project, first in projects
            if (most := limits_of(project.limits or {}, self._limits).jobs_running) is None
            or running.get(project.id, 0) < most
        ]
        return queue.job(min(candidates)[1]) if candidates else None


class Dispatcher:
    """A thread that hands over jobs as their turns come."""

    def __init__(self, queue: FairQueue, start_job: Callable[[str], None]) -> None:
        """`start_job` hands one job to the durable queue; it is called again and again until the job has started."""
        self._queue = queue
        self._start_job = start_job
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)

    def start(self) -> None:
        """Hand over what an earlier server began, then whatever has its turn."""
        for job_id in self._queue.begun():
            self._start_job(job_id)
        self._thread.start()

    def stop(self) -> None:
        """Hand over nothing more."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def wake(self) -> None:
        """Look at once: there may be a job to hand over."""
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                for job_id in self._queue.take():
                    self._start_job(job_id)
            except Exception:
                log.exception("jobs cannot be handed over; trying again")
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()
