"""Queries on jobs, events and checkpoints."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import func, update

from alignkit_server.clock import now
from alignkit_server.pagination import Page, PageQuery
from alignkit_server.scoped import ScopedRepository
from alignkit_server.tables import Checkpoint, Event, Job

RATES = 20
"""Number of past jobs that an estimate uses."""


def change_of(status: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Columns to set with a job's status: `values`, and its run time, which counts while the status is `running`."""
    if status == "running":
        clock = {"started_at": func.coalesce(Job.started_at, now()), "running_since": now()}
    else:
        ran = func.coalesce(now() - Job.running_since, 0)
        clock = {"run_seconds": Job.run_seconds + ran, "running_since": None}
    return {"status": status, **clock, **values}


class JobRepository(ScopedRepository[Job]):
    """One project's jobs."""

    table = Job
    kind = "fine-tuning job"

    def list(self, labels: Mapping[str, str] | None, query: PageQuery) -> Page[Job]:
        """A page of the jobs that carry all of `labels`; with None, of the jobs without labels."""
        statement = self.select()
        if labels is None:
            statement = statement.where(Job.labels.is_(None))
        for key, value in (labels or {}).items():
            statement = statement.where(Job.labels[key].as_string() == value)
        return self.page(statement, query)

    def rates(self, base_model: str, method: str) -> Sequence[float]:
        """Tokens per second of the newest succeeded jobs that were never paused, from start to a serving model."""
        done = self.select().where(
            Job.status == "succeeded",
            Job.base_model == base_model,
            Job.method_type == method,
            Job.attempt == 1,
        )
        jobs = self._session.scalars(done.order_by(Job.seq.desc()).limit(RATES))
        return [
            job.trained_tokens / (job.finished_at - job.started_at)
            for job in jobs
            if job.trained_tokens and job.started_at and job.finished_at and job.finished_at > job.started_at
        ]

    def change(self, job: Job, status: str, *, only_from: Sequence[str], **values: Any) -> bool:
        """Set the status and `values` if the current status is one of `only_from`; returns whether it was."""
        change = update(Job).where(Job.seq == job.seq, Job.status.in_(only_from))
        done = self._session.execute(change.values(change_of(status, values)).returning(Job.seq)).all()
        self._session.refresh(job)
        return bool(done)


class EventRepository(ScopedRepository[Event]):
    """One project's events."""

    table = Event
    kind = "event"

    def list(self, job_id: str, query: PageQuery, type: str | None = None) -> Page[Event]:  # noqa: A002
        """A page of a job's events; optionally of one type."""
        statement = self.select().where(Event.job_id == job_id)
        return self.page(statement if type is None else statement.where(Event.type == type), query)

    def metrics(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The data of a job's metrics events, oldest first."""
        query = self.select().where(Event.job_id == job_id, Event.type == "metrics").order_by(Event.seq)
        rows = self._session.execute(query.with_only_columns(Event.data).execution_options(yield_per=1000))
        yield from (data for (data,) in rows if data)

    def position(self, job_id: str, event_id: str) -> int | None:
        """The `seq` of an event of the job, or None if the job has no such event."""
        event = self._session.scalar(self.select().where(Event.job_id == job_id, Event.id == event_id))
        return None if event is None else event.seq

    def following(
        self,
        job_id: str,
        position: int,
        limit: int,
        type: str | None = None,  # noqa: A002 - OpenAI's name
    ) -> Sequence[Event]:
        """The job's next events after a position, oldest first; optionally of one type."""
        query = self.select().where(Event.job_id == job_id, Event.seq > position)
        if type is not None:
            query = query.where(Event.type == type)
        return self._session.scalars(query.order_by(Event.seq).limit(limit)).all()


class CheckpointRepository(ScopedRepository[Checkpoint]):
    """One project's checkpoints."""

    table = Checkpoint
    kind = "checkpoint"

    def list(self, job_id: str, query: PageQuery) -> Page[Checkpoint]:
        """A page of a job's published checkpoints; their models may have been deleted since."""
        published = self.select().where(Checkpoint.job_id == job_id, Checkpoint.model_name.is_not(None))
        return self.page(published, query)
