"""The order in which jobs start: projects take turns, and jobs of one project run in order of creation."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from alignkit_server.job_status import ACTIVE, WAITING
from alignkit_server.tables import Job, Project


def places(session: Session, jobs: Iterable[Job]) -> dict[str, int]:
    """The queue position of each waiting job in `jobs`, if turns were assigned now; 1 starts next.

    Projects take turns, so a project's n-th job starts in the n-th round: after the first n - 1 jobs of every other
    project, and after the n-th jobs of the projects ahead of it in the round. Only the lengths of other queues are
    read, not their jobs. Limits on running jobs per project are ignored.
    """
    asked = [job for job in jobs if job.status in WAITING]
    if not asked:
        return {}
    queue = Queue(session)
    called = {job_id: place for place, job_id in enumerate(queue.called(), start=1)}
    lengths, ranks = queue.lengths(), queue.ranks(asked)
    rounds = list(lengths)
    found = {job.id: called[job.id] for job in asked if job.id in called}
    for job in asked:
        if job.seq not in ranks:
            continue
        earlier = ranks[job.seq]  # earlier jobs of its own project
        before = rounds.index(job.project_id)
        others = sum(
            min(lengths[project_id], earlier + (turn < before))
            for turn, project_id in enumerate(rounds)
            if turn != before
        )
        found[job.id] = len(called) + earlier + others + 1
    return found


def waiting(session: Session) -> int:
    """Number of waiting jobs, including those that have a turn and have not started."""
    query = select(func.count(Job.seq)).where(Job.status.in_(WAITING))
    return session.scalars(query).one()


class Queue:
    """Queries on the jobs that wait or hold a slot, in one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def lock(self) -> None:
        """Allow only one server at a time to assign turns. SQLite has one writer at a time anyway."""
        query = select(Project.id).order_by(Project.id)
        self._session.execute(query.with_for_update(key_share=True))

    def taken(self) -> int:
        """Number of slots in use."""
        query = select(func.count(Job.seq)).where(Job.status.in_(ACTIVE), Job.turn.is_not(None))
        return self._session.scalars(query).one()

    def holders(self) -> Sequence[Job]:
        """The jobs that hold a slot."""
        query = select(Job).where(Job.status.in_(ACTIVE), Job.turn.is_not(None))
        return self._session.scalars(query).all()

    def running(self) -> dict[str, int]:
        """Number of slots in use per project."""
        query = select(Job.project_id, func.count(Job.seq)).where(
            Job.status.in_(ACTIVE), Job.turn.is_not(None)
        )
        return _pairs(self._session.execute(query.group_by(Job.project_id)))

    def last_turns(self, projects: Iterable[str]) -> dict[str, int]:
        """The last turn of each of these projects that has had one.

        One query per project: each is one index lookup, while one query for all would scan every job ever created.
        """
        query = select(func.max(Job.turn))
        last = {name: self._session.scalar(query.where(Job.project_id == name)) for name in projects}
        return {name: turn for name, turn in last.items() if turn is not None}

    def waiting(self) -> list[tuple[Project, int]]:
        """Projects with jobs that wait for a turn, each with the `seq` of its first such job."""
        first = (
            select(Job.project_id, func.min(Job.seq).label("first"))
            .where(Job.status.in_(WAITING), Job.turn.is_(None))
            .group_by(Job.project_id)
            .subquery()
        )
        query = select(Project, first.c.first).join(first, Project.id == first.c.project_id)
        return [(project, seq) for project, seq in self._session.execute(query)]

    def lengths(self) -> dict[str, int]:
        """Number of jobs that wait for a turn per project, in the order in which projects are served next."""
        waits = (Job.status.in_(WAITING), Job.turn.is_(None))
        query = select(Job.project_id, func.count(Job.seq)).where(*waits).group_by(Job.project_id)
        lengths = _pairs(self._session.execute(query.order_by(func.min(Job.seq))))
        last = self.last_turns(lengths)
        return {name: lengths[name] for name in sorted(lengths, key=lambda name: last.get(name, 0))}

    def ranks(self, jobs: Iterable[Job]) -> dict[int, int]:
        """`seq` of each waiting job -> how many jobs of its project are ahead of it."""
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
        return {seq: rank for seq, rank in self._session.execute(query)}  # noqa: C416 - Row is no pair to a type checker

    def job(self, seq: int) -> Job:
        """The job with that `seq`."""
        return self._session.scalars(select(Job).where(Job.seq == seq)).one()

    def give_turn(self, job: Job) -> None:
        """Give a job the next turn of the whole service."""
        last = self._session.scalars(select(func.max(Job.turn))).one()
        job.turn = (last or 0) + 1
        self._session.flush()

    def called(self, *, started: bool = False) -> Sequence[str]:
        """Ids of unfinished jobs with a turn, in order of turns; with `started`, also those that have started."""
        query = select(Job.id).where(Job.status.in_(ACTIVE if started else WAITING), Job.turn.is_not(None))
        return self._session.scalars(query.order_by(Job.turn)).all()


def _pairs(rows: Iterable[Any]) -> dict[str, int]:
    return {project: number for project, number in rows}  # noqa: C416 - Row is no pair to a type checker
