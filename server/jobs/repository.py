"""Queries on jobs, events and checkpoints."""

from collections.abc import Mapping, Sequence

from sqlalchemy import update

from server.jobs.status import ACTIVE
from server.jobs.tables import Checkpoint, Event, Job
from server.pagination import Page, PageQuery
from server.scoped import ScopedRepository


class JobRepository(ScopedRepository[Job]):
    """One project's jobs."""

    table = Job
    kind = "fine-tuning job"

    def list(self, labels: Mapping[str, str] | None, query: PageQuery) -> Page[Job]:
        """A page of the jobs that carry all of `labels`; None asks for those that carry none."""
        statement = self.select()
        if labels is None:
            statement = statement.where(Job.labels.is_(None))
        for key, value in (labels or {}).items():
            statement = statement.where(Job.labels[key].as_string() == value)
        return self.page(statement, query)

    def finish(self, job: Job, status: str, finished_at: int) -> bool:
        """Set a last status if the job has none; whether it had none."""
        change = update(Job).where(Job.seq == job.seq, Job.status.in_(ACTIVE))
        values = {"status": status, "finished_at": finished_at, "estimated_finish": None}
        done = self._session.execute(change.values(**values).returning(Job.seq)).all()
        self._session.refresh(job)
        return bool(done)


class EventRepository(ScopedRepository[Event]):
    """One project's events."""

    table = Event
    kind = "event"

    def list(self, job_id: str, query: PageQuery) -> Page[Event]:
        """A page of a job's events."""
        return self.page(self.select().where(Event.job_id == job_id), query)

    def position(self, job_id: str, event_id: str) -> int | None:
        """Where an event stands among its job's."""
        event = self._session.scalar(self.select().where(Event.job_id == job_id, Event.id == event_id))
        return None if event is None else event.seq

    def following(self, job_id: str, position: int, limit: int) -> Sequence[Event]:
        """The job's next events after a position, oldest first."""
        query = self.select().where(Event.job_id == job_id, Event.seq > position)
        return self._session.scalars(query.order_by(Event.seq).limit(limit)).all()


class CheckpointRepository(ScopedRepository[Checkpoint]):
    """One project's checkpoints."""

    table = Checkpoint
    kind = "checkpoint"

    def list(self, job_id: str, query: PageQuery) -> Page[Checkpoint]:
        """A page of a job's checkpoints that can be used: those that are published."""
        published = self.select().where(Checkpoint.job_id == job_id, Checkpoint.model_name.is_not(None))
        return self.page(published, query)
