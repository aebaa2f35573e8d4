"""Decides which job starts next: projects take turns, and jobs of one project run in order.

A free slot goes to the project whose last turn is longest ago, so a project with a thousand jobs delays the first
job of another by at most one job. A job that needs more GPUs than are free holds the others up until it
has them, so that small jobs cannot starve a large one.

Turns are stored with the jobs before they are enqueued; if a server is killed
in between, they are enqueued at the next start.
"""

import threading
from collections.abc import Callable, Sequence

import structlog

from alignkit_server.database import Database
from alignkit_server.executors.registry import slots_of
from alignkit_server.jobs.queue import Queue
from alignkit_server.limits.quotas import limits_of
from alignkit_server.outages import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, described, is_outage
from alignkit_server.settings import Settings
from alignkit_server.tables import Job

POLL_SECONDS = 0.2
JOIN_SECONDS = 10.0
"""Seconds to wait for the end of the thread, which may be in the middle of an outage."""

log = structlog.get_logger()


class FairQueue:
    """Assigns the slots. Safe for several threads and for several servers on one database."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        capacity: Callable[[], int | None] = lambda: None,
        devices: Callable[[], int | None] = lambda: None,
    ) -> None:
        """`capacity` returns how many runs the executor can take now, `devices` how many GPUs runs may have in all.

        None: only the slots count.
        """
        self._database = database
        self._slots = slots_of(settings)
        self._capacity = capacity
        self._devices = devices
        self._limits = settings.limits

    def take(self) -> Sequence[str]:
        """Assign the free slots; returns every job that has a turn and has not started, in order."""
        capacity = self._capacity()
        slots = self._slots if capacity is None else min(self._slots, capacity)
        with (
            self._database.reading() as session
        ):  # usually there is nothing to do, and no write lock is needed
            queue = Queue(session)
            if queue.taken() >= slots or not queue.waiting():
                return queue.called()
        devices = self._devices()
        with self._database.writing() as session:
            queue = Queue(session)
            queue.lock()
            free = None if devices is None else devices - sum(map(devices_of, queue.holders()))
            for _ in range(slots - queue.taken()):
                job = self._next(queue, devices)
                if job is None or (free is not None and devices_of(job) > free):
                    break
                free = None if free is None else free - devices_of(job)
                queue.give_turn(job)
            return queue.called()

    def begun(self) -> Sequence[str]:
        """Every unfinished job that has a turn, in order."""
        with self._database.reading() as session:
            return Queue(session).called(started=True)

    def _next(self, queue: "Queue", devices: int | None) -> Job | None:
        """The first job of the project to serve next; None if no project may start another.

        A project whose first job needs more than all `devices` is passed over: some of them may be gone for long.
        """
        projects, running = queue.waiting(), queue.running()
        last = queue.last_turns(project.id for project, _ in projects)
        candidates = [
            (last.get(project.id, 0), first, project.id)
            for project, first in projects
            if (most := limits_of(project.limits or {}, self._limits).jobs_running) is None
            or running.get(project.id, 0) < most
        ]
        if devices is not None:
            candidates = [found for found in candidates if devices_of(queue.job(found[1])) <= devices]
        return queue.job(min(candidates)[1]) if candidates else None


def devices_of(job: Job) -> int:
    """GPUs that a job trains on."""
    return int((job.recipe.get("training") or {}).get("devices") or 1)


class Dispatcher:
    """A thread that hands jobs to the durable queue as their turns come."""

    def __init__(self, queue: FairQueue, start_job: Callable[[str], None]) -> None:
        """`start_job` hands one job to the durable queue; it is called repeatedly until the job has started."""
        self._queue = queue
        self._start_job = start_job
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)

    def start(self) -> None:
        """Hand over the jobs that an earlier server started, then each job that gets a turn."""
        for job_id in self._queue.begun():
            self._start_job(job_id)
        self._thread.start()

    def stop(self) -> None:
        """Stop handing over jobs."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_SECONDS)

    def wake(self) -> None:
        """Check the queue now: a job may be ready."""
        self._wake.set()

    def _run(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            try:
                for job_id in self._queue.take():
                    self._start_job(job_id)
                pause = FIRST_PAUSE_SECONDS
            except Exception as error:
                if is_outage(error):
                    log.warning("no job can be started now; trying again", what=described(error))
                else:
                    log.exception("starting jobs failed; trying again")
                self._stopping.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()
