"""Whose turn it is: projects take turns, and within a project jobs go in order.

A free slot goes to the project that has waited longest since its last turn, so a project with a thousand jobs delays
another's first one by at most one. Turns are stored with the jobs before the durable queue hears of them; a server
that is killed in between hands them over when it starts again.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import structlog
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from alignkit_server.database import Database
from alignkit_server.jobs.status import ACTIVE, WAITING
from alignkit_server.jobs.tables import Job
from alignkit_server.keys.tables import Project
from alignkit_server.limits.quotas import limits_of
from alignkit_server.settings import Settings

POLL_SECONDS = 0.2

log = structlog.get_logger()


class Turns:
    """Gives out the slots. Thread-safe, also between servers of one database."""

    def __init__(
        self, database: Database, settings: Settings, capacity: Callable[[], int | None] = lambda: None
    ) -> None:
        """`capacity`: how many runs what runs them takes as things are; None where only the slots count."""
        self._database = database
        self._slots = settings.training_slots
        self._capacity = capacity
        self._limits = settings.limits

    def take(self) -> Sequence[str]:
        """Give the free slots away; returns every job that has a turn and has not started, in order."""
        capacity = self._capacity()
        slots = self._slots if capacity is None else min(self._slots, capacity)
        with self._database.reading() as session:  # most looks find nothing to do, and need no writer's turn
            queue = _Queue(session)
            if queue.taken() >= slots or not queue.waiting():
                return queue.called()
        with self._database.writing() as session:
            queue = _Queue(session)
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
            return _Queue(session).called(started=True)

    def _next(self, queue: "_Queue") -> Job | None:
        """The first job of the project that is to be served; None where nobody may start another."""
        projects, running = queue.waiting(), queue.running()
        last = queue.last_turns(project.id for project, _ in projects)
        candidates = [
            (last.get(project.id, 0), first, project.id)
            for project, first in projects
            if (most := limits_of(project.limits or {}, self._limits).jobs_running) is None
            or running.get(project.id, 0) < most
        ]
        return queue.job(min(candidates)[1]) if candidates else None


def places(session: Session, jobs: Iterable[Job]) -> dict[str, int]:
    """The place of each of `jobs` that waits, as turns would be given now: 1 is the next to start.

    Projects take turns, so a project's n-th job starts in the n-th round: after every other project's first n - 1,
    and after the n-th of those that come before it in a round. So nobody's queue is read, only its length. Limits on
    how many jobs of a project run at once are not looked at.
    """
    asked = [job for job in jobs if job.status in WAITING]
    if not asked:
        return {}
    queue = _Queue(session)
    called = {job_id: place for place, job_id in enumerate(queue.called(), start=1)}
    lengths, ranks = queue.lengths(), queue.ranks(asked)
    rounds = list(lengths)
    found = {job.id: called[job.id] for job in asked if job.id in called}
    for job in asked:
        if job.seq not in ranks:
            continue
        earlier = ranks[job.seq]  # of its own project
        before = rounds.index(job.project_id)
        others = sum(
            min(lengths[project_id], earlier + (turn < before))
            for turn, project_id in enumerate(rounds)
            if turn != before
        )
        found[job.id] = len(called) + earlier + others + 1
    return found


def waiting(session: Session) -> int:
    """How many jobs wait, those called to start included."""
    query = select(func.count(Job.seq)).where(Job.status.in_(WAITING))
    return session.scalars(query).one()


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

    def last_turns(self, projects: Iterable[str]) -> dict[str, int]:
        """The last turn of each of these projects that has had one; looked up one by one, since each is one step
        into an index, and all of them together a walk over every job there ever was."""
        query = select(func.max(Job.turn))
        last = {name: self._session.scalar(query.where(Job.project_id == name)) for name in projects}
        return {name: turn for name, turn in last.items() if turn is not None}

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

    def lengths(self) -> dict[str, int]:
        """How many jobs of each project wait for their turn, in the order in which the projects are served next."""
        waits = (Job.status.in_(WAITING), Job.turn.is_(None))
        query = select(Job.project_id, func.count(Job.seq)).where(*waits).group_by(Job.project_id)
        lengths = _pairs(self._session.execute(query.order_by(func.min(Job.seq))))
        last = self.last_turns(lengths)
        return {name: lengths[name] for name in sorted(lengths, key=lambda name: last.get(name, 0))}

    def ranks(self, jobs: Iterable[Job]) -> dict[int, int]:
        """By `seq` of those of `jobs` that wait for their turn: how many of their project's wait before them."""
        asked = list(jobs)
        earlier = func.row_number().over(partition_by=Job.project_id, order_by=Job.seq) - 1
        ranked = (
            select(Job.seq, earlier.label("earlier"))
            .where(
                Job.project_id.in_({job.project_id for job in asked}),
                Job.status.in_(WAITING),
                Job.turn.is_(None),
            )
            .subquery()
        )
        query = select(ranked).where(ranked.c.seq.in_([job.seq for job in asked]))
        return {seq: rank for seq, rank in self._session.execute(query)}  # noqa: C416 - as below

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
