"""Job records for the workflow, across all projects. Thread-safe; every method is its own transaction.

A workflow may repeat any step after a crash, so every method is idempotent: status changes are compare-and-set,
and nothing is added twice.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from alignkit_server.clock import now
from alignkit_server.database import Database, storable
from alignkit_server.ids import CHECKPOINT, EVENT, MODEL, fixed_id, new_id
from alignkit_server.job_status import ACTIVE, FINISHED
from alignkit_server.jobs.repository import EventRepository, change_of
from alignkit_server.tables import Checkpoint, Event, File, FineTunedModel, Job, Project
from alignkit_server.webhooks.repository import announce

FIELDS = frozenset(
    {
        "started_at",
        "run_seconds",
        "peak_bytes",
        "finished_at",
        "error",
        "fine_tuned_model",
        "trained_tokens",
        "estimated_finish",
        "result_files",
    }
)


@dataclass(frozen=True, slots=True)
class JobRecord:
    """The fields of a job that its workflow needs."""

    id: str
    project_id: str
    project_name: str
    status: str
    base_model: str
    suffix: str | None
    training_file: str
    validation_file: str | None
    seed: int
    method_type: str
    created_at: int
    fine_tuned_model: str | None
    attempt: int
    recipe: dict[str, Any]
    serving: str


class JobLedger:
    """Reads and changes jobs by id. An unknown id raises LookupError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def database(self) -> Database:
        """The database that holds the records."""
        return self._database

    def get(self, job_id: str) -> JobRecord:
        """The current state of the job."""
        query = select(Job, Project.name).join(Project, Job.project_id == Project.id)
        with self._database.reading() as session:
            found = session.execute(query.where(Job.id == job_id)).one_or_none()
        if found is None:
            raise LookupError(f"no job {job_id}")
        job, project_name = found
        return JobRecord(
            id=job.id,
            project_id=job.project_id,
            project_name=project_name,
            status=job.status,
            base_model=job.base_model,
            suffix=job.suffix,
            training_file=job.training_file,
            validation_file=job.validation_file,
            seed=job.seed,
            method_type=job.method_type,
            created_at=job.created_at,
            fine_tuned_model=job.fine_tuned_model,
            attempt=job.attempt,
            recipe=job.recipe,
            serving=job.serving,
        )

    def active_jobs(self) -> list[str]:
        """Ids of the active jobs (not paused, not finished), oldest first."""
        with self._database.reading() as session:
            return list(session.scalars(select(Job.id).where(Job.status.in_(ACTIVE)).order_by(Job.seq)))

    def transition(
        self,
        job_id: str,
        to: str,
        *,
        only_from: Iterable[str],
        events: Iterable[tuple[str, str]] = (),
        data: dict[str, Any] | None = None,
        **fields: Any,
    ) -> bool:
        """Set the status and `fields` if the current status is one of `only_from`; returns whether it was.

        The same transaction adds `events`, pairs (level, message), and the webhooks of a final status, so that none
        of them exists without the others.
        """
        change = update(Job).where(Job.id == job_id, Job.status.in_(tuple(only_from)))
        with self._database.writing() as session:
            done = session.execute(change.values(change_of(to, _known(fields))).returning(Job.id)).all()
            if done:
                job = _locked(session, job_id)
                session.add_all(_event(job, level, message, data) for level, message in events)
                if to in FINISHED:
                    announce(session, job, to)
        return bool(done)

    def set_fields(self, job_id: str, **fields: Any) -> None:
        """Set `fields` regardless of the status."""
        with self._database.writing() as session:
            session.execute(update(Job).where(Job.id == job_id).values(**_known(fields)))

    def add_event(
        self,
        job_id: str,
        *,
        level: str,
        message: str,
        type: str = "message",  # noqa: A002 - OpenAI's name
        data: dict[str, Any] | None = None,
        created_at: int | None = None,
        source_line: int | None = None,
        once: str | None = None,
    ) -> None:
        """Add an event, unless the job already has one with the same `source_line` or the same `once` name.

        A finished job gets no more events: its last event reports its end, so clients know they have all.
        """
        with self._database.writing() as session:
            job = _locked(session, job_id)
            if job.status in FINISHED:
                return
            if source_line is not None and _exists(session, Event, job_id, Event.source_line == source_line):
                return
            event = _event(job, level, message)
            if once is not None:
                event.id = fixed_id(EVENT, job_id, once)
                if _exists(session, Event, job_id, Event.id == event.id):
                    return
            event.type, event.data, event.source_line = type, data, source_line
            if created_at is not None:
                event.created_at = created_at
            session.add(event)

    def metrics(self, job_id: str) -> list[dict[str, Any]]:
        """The data of the job's metrics events, oldest first."""
        with self._database.reading() as session:
            return list(EventRepository(session, _locked(session, job_id).project_id).metrics(job_id))

    def add_file(self, job_id: str, *, id: str, filename: str, purpose: str, size: int) -> None:  # noqa: A002
        """Record a file for the job's project; its bytes are already in place. Idempotent per id."""
        with self._database.writing() as session:
            job = _locked(session, job_id)
            if session.scalar(select(File.id).where(File.id == id)) is None:
                file = File(id=id, project_id=job.project_id, filename=filename, purpose=purpose, bytes=size)
                file.created_at = now()
                session.add(file)

    def source_lines(self, job_id: str) -> int:
        """Number of stored lines of the run's events.jsonl."""
        with self._database.reading() as session:
            last = session.scalar(select(func.max(Event.source_line)).where(Event.job_id == job_id))
        return 0 if last is None else last + 1

    def add_checkpoint(
        self, job_id: str, *, step: int, model_name: str | None, metrics: dict[str, Any], path: str
    ) -> None:
        """Record the checkpoint of a step, or complete its record, such as with the name it was published under."""
        with self._database.writing() as session:
            job = _locked(session, job_id)
            query = select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.step == step)
            known = session.scalar(query)
            if known is not None:
                known.model_name = model_name or known.model_name
                known.metrics = known.metrics | metrics
                return
            session.add(
                Checkpoint(
                    id=new_id(CHECKPOINT),
                    project_id=job.project_id,
                    job_id=job_id,
                    created_at=now(),
                    step=step,
                    model_name=model_name,
                    metrics=metrics,
                    path=path,
                )
            )

    def add_model(
        self, job_id: str, *, name: str, base_model: str, kind: str, path: str, step: int | None = None
    ) -> None:
        """Record a model of the job, once per name, or that it is now served as another kind.

        It is not visible to others until the job has succeeded.
        """
        with self._database.writing() as session:
            job = _locked(session, job_id)
            mine = FineTunedModel.job_id == job_id, FineTunedModel.name == name
            known = session.scalars(select(FineTunedModel).where(*mine)).one_or_none()
            if known is not None:
                known.kind = kind
                return
            session.add(
                FineTunedModel(
                    id=new_id(MODEL),
                    project_id=job.project_id,
                    job_id=job_id,
                    created_at=now(),
                    name=name,
                    base_model=base_model,
                    kind=kind,
                    path=path,
                    step=step,
                )
            )


def _known(fields: dict[str, Any]) -> dict[str, Any]:
    unknown = fields.keys() - FIELDS
    if unknown:
        raise TypeError(f"expected only {', '.join(sorted(FIELDS))}, found {', '.join(sorted(unknown))}")
    return fields


def _locked(session: Session, job_id: str) -> Job:
    """The job with its row locked, so that additions to one job become visible in the order of `seq`."""
    job = session.scalar(select(Job).where(Job.id == job_id).with_for_update())
    if job is None:
        raise LookupError(f"no job {job_id}")
    return job


def _event(job: Job, level: str, message: str, data: dict[str, Any] | None = None) -> Event:
    return Event(
        id=new_id(EVENT),
        project_id=job.project_id,
        job_id=job.id,
        created_at=now(),
        level=level,
        message=storable(message),
        type="message",
        data=data,
    )


def _exists(session: Session, table: type[Event | FineTunedModel], job_id: str, condition: Any) -> bool:
    return session.scalar(select(table.id).where(table.job_id == job_id, condition)) is not None
