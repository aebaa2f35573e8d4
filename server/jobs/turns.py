"""Whose turn it is: projects take turns, and within a project jobs go in order.

A free slot goes to the project that has waited longest since its last turn, so a project with a thousand jobs delays
another's first one by at most one. Turns are stored with the jobs before the durable queue hears of them; a server
that is killed in between hands them over when it starts again.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heappop, heapreplace
from typing import Any

import structlog
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from server.database import Database
from server.jobs.status import ACTIVE, WAITING
from server.jobs.tables import Job
from server.keys.tables import Project
from server.limits.quotas import limits_of
from server.settings import Settings

POLL_SECONDS = 0.2

log = structlog.get_logger()


class Turns:
    """Gives out the slots. Thread-safe, also between servers of one database."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._slots = settings.training_slots
        self._limits = settings.limits

    def take(self) -> Sequence[str]:
        """Give the free slots away; returns every job that has a turn and has not started, in order."""
        with self._database.reading() as session:  # most looks find nothing to do, and need no writer's turn
            queue = _Queue(session)
            if queue.taken() >= self._slots or not queue.waiting():
                return queue.called()
        with self._database.writing() as session:
            queue = _Queue(session)
            queue.lock()
            for _ in range(self._slots - queue.taken()):
                job = self._next(queue)
                if job is None:
                    break
                queue.give_turn(job)
            return queue.called()

    def begun(self) -> Sequence[str]:
        """Every unfinished job that has a turn, in order."""
        with self._database.reading() as session:
            return _Queue(session).called(started=True)

    def _next(self, queue: "_Queue") -> Job | None:
        """The first job of the project that is to be served; None where nobody may start another."""
        last, running = queue.last_turns(), queue.running()
        waiting = [
            (last.get(project.id, 0), first, project.id)
            for project, first in queue.waiting()
            if (most := limits_of(project.limits or {}, self._limits).jobs_running) is None
            or running.get(project.id, 0) < most
        ]
        return queue.job(min(waiting)[1]) if waiting else None


def places(session: Session) -> dict[str, int]:
    """The place of every job that waits, as turns would be given now: 1 is the next to start.

    Limits on how many jobs of a project run at once are not looked at.
    """
    queue = _Queue(session)
    called, last = list(queue.called()), queue.last_turns()
    jobs: dict[str, deque[str]] = {}
    for job_id, project_id in queue.in_order():
        jobs.setdefault(project_id, deque()).append(job_id)
    turn = max(last.values(), default=0)
    ahead = [(last.get(project_id, 0), place, project_id) for place, project_id in enumerate(jobs)]
    heapify(ahead)
    while ahead:
        _, place, project_id = ahead[0]
        called.append(jobs[project_id].popleft())
        turn += 1
        heapreplace(ahead, (turn, place, project_id)) if jobs[project_id] else heappop(ahead)
    return {job_id: place for place, job_id in enumerate(called, start=1)}


class _Queue:
    """The queries, in one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def lock(self) -> None:
        """Let one server at a time give out turns: SQLite's writers are one at a time anyway."""
        query = select(Project.id).order_by(Project.id)
        self._session.execute(query.with_for_update(key_share=True))

    def taken(self) -> int:
        """Slots in use."""
        query = select(func.count(Job.seq)).where(Job.status.in_(ACTIVE), Job.turn.is_not(None))
        return self._session.scalars(query).one()

    def running(self) -> dict[str, int]:
        """Slots in use by project."""
        query = select(Job.project_id, func.count(Job.seq)).where(
            Job.status.in_(ACTIVE), Job.turn.is_not(None)
        )
        return _pairs(self._session.execute(query.group_by(Job.project_id)))

    def last_turns(self) -> dict[str, int]:
        """Each project's last turn."""
        query = select(Job.project_id, func.max(Job.turn)).where(Job.turn.is_not(None))
        return _pairs(self._session.execute(query.group_by(Job.project_id)))

    def waiting(self) -> list[tuple[Project, int]]:
        """Projects with jobs that wait for their turn, and the first such job's `seq`."""
        first = (
            select(Job.project_id, func.min(Job.seq).label("first"))
            .where(Job.status.in_(WAITING), Job.turn.is_(None))
            .group_by(Job.project_id)
            .subquery()
        )
        query = select(Project, first.c.first).join(first, Project.id == first.c.project_id)
        return [(project, seq) for project, seq in self._session.execute(query)]

    def in_order(self) -> Iterable[tuple[str, str]]:
        """(job, project) of every job that waits for its turn, oldest first."""
        query = select(Job.id, Job.project_id).where(Job.status.in_(WAITING), Job.turn.is_(None))
        return [(job_id, project_id) for job_id, project_id in self._session.execute(query.order_by(Job.seq))]

    def job(self, seq: int) -> Job:
        return self._session.scalars(select(Job).where(Job.seq == seq)).one()

    def give_turn(self, job: Job) -> None:
        last = self._session.scalars(select(func.max(Job.turn))).one()
        job.turn = (last or 0) + 1
        self._session.flush()

    def called(self, *, started: bool = False) -> Sequence[str]:
        """Jobs that have a turn and are not finished, nor, unless asked for, started."""
        query = select(Job.id).where(Job.status.in_(ACTIVE if started else WAITING), Job.turn.is_not(None))
        return self._session.scalars(query.order_by(Job.turn)).all()


def _pairs(rows: Iterable[Any]) -> dict[str, int]:
    return {project: number for project, number in rows}  # noqa: C416 - Row is no pair to a type checker


class Dispatcher:
    """A thread that hands over jobs as their turns come."""

    def __init__(self, turns: Turns, start_job: Callable[[str], None]) -> None:
        """`start_job` hands one job to the durable queue; it is called again and again until the job has started."""
        self._turns = turns
        self._start_job = start_job
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)

    def start(self) -> None:
        """Hand over what an earlier server began, then whatever has its turn."""
        for job_id in self._turns.begun():
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
                for job_id in self._turns.take():
                    self._start_job(job_id)
            except Exception:
                log.exception("jobs cannot be handed over; trying again")
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()
