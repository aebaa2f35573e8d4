"""Jobs of a project: create, list, pause, resume, cancel. Stores what `preparation` has accepted."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from fastapi import Depends
from sqlalchemy.orm import Session

from alignkit.run.folder import RunFolder
from alignkit_server.audit.record import Audit
from alignkit_server.catalog.repository import ModelRepository
from alignkit_server.clock import now
from alignkit_server.database import after_commit
from alignkit_server.dependencies import ProjectDep, ServicesDep, SessionDep
from alignkit_server.engines.serving import AS_ADAPTER
from alignkit_server.errors import ApiError, not_found
from alignkit_server.executors.registry import gpus_of
from alignkit_server.files.repository import FileRepository
from alignkit_server.ids import EVENT, new_id
from alignkit_server.job_status import ACTIVE, FINISHED, PAUSED, UNFINISHED
from alignkit_server.jobs.idempotency import Idempotency, add_once
from alignkit_server.jobs.log_tail import log_tail
from alignkit_server.jobs.metrics import collect
from alignkit_server.jobs.preparation import PreparedJob
from alignkit_server.jobs.presenting import present_checkpoint, present_event, present_job
from alignkit_server.jobs.queue import places
from alignkit_server.jobs.repository import CheckpointRepository, EventRepository, JobRepository
from alignkit_server.jobs.schemas import (
    CheckpointObject,
    EventObject,
    JobLog,
    JobMetrics,
    JobObject,
    JobPruned,
)
from alignkit_server.keys.service import Principal
from alignkit_server.limits.quotas import require_job, require_more_time
from alignkit_server.pagination import CursorListObject, ListObject, PageQuery
from alignkit_server.services import Services
from alignkit_server.tables import Event, Job
from alignkit_server.webhooks.repository import announce

ENDING_SECONDS = 120
"""For which a cancelled job's training may still write."""


class JobService:
    """The jobs of one project."""

    def __init__(self, session: Session, project: Principal, services: Services) -> None:
        self._session = session
        self._project = project
        self._services = services
        self._jobs = JobRepository(session, project.project_id)
        self._events = EventRepository(session, project.project_id)
        self._checkpoints = CheckpointRepository(session, project.project_id)

    def create(self, prepared: PreparedJob, idempotency: Idempotency | None = None) -> JobObject:
        """Store the job and enqueue it after the commit. Raises 429 if the project's quota is used up.

        If another request with the same idempotency key was faster, returns that request's job.
        """
        require_job(self._session, self._project.project_id, self._services.settings.limits)
        request = prepared.request
        self._hold_file("training_file", request.training_file)
        if request.validation_file is not None:
            self._hold_file("validation_file", request.validation_file)
        for file_id in prepared.files_of_terms:
            self._hold_file(f"method.{prepared.method}.hyperparameters.terms", file_id)
        for name in prepared.fine_tuned_models:
            self._hold_model(name)
        job = Job(
            id=prepared.id,
            created_at=now(),
            status="queued",
            attempt=1,
            idempotency_key=idempotency.key if idempotency else None,
            request_hash=idempotency.request_hash if idempotency else None,
            base_model=prepared.base_model,
            start_model=prepared.start_model,
            training_file=request.training_file,
            validation_file=request.validation_file,
            suffix=request.suffix,
            serving=request.serving or AS_ADAPTER,
            seed=prepared.seed,
            method_type=prepared.method,
            hyperparameters=prepared.hyperparameters,
            recipe=prepared.recipe,
            gpus=gpus_of(prepared.recipe, self._services.settings),
            labels=request.metadata or None,
            result_files=[],
        )
        first = add_once(self._session, self._jobs, job, idempotency)
        if first is not job:
            return self._present(first)
        self._report(job, "info", f"Created fine-tuning job: {job.id}")
        for notice in prepared.notices:
            self._report(job, "warn", notice)
        self._report(job, "info", "Files validated, job queued")
        after_commit(self._session, lambda: self._services.enqueue(prepared.id))
        return self._present(job)

    def list(self, labels: Mapping[str, str] | None, query: PageQuery) -> ListObject[JobObject]:
        """A page of jobs, newest first; `labels` as in JobRepository.list."""
        page = self._jobs.list(labels, query)
        found = places(self._session, page.items)
        data = [present_job(job, self._project, found.get(job.id)) for job in page.items]
        return ListObject(data=data, has_more=page.has_more)

    def get(self, job_id: str) -> JobObject:
        """One job."""
        return self._present(self._jobs.get(job_id))

    def cancel(self, job_id: str) -> JobObject:
        """Cancel an unfinished job. Raises 400 for a finished one."""
        job = self._jobs.get(job_id)
        ended = {"finished_at": now(), "estimated_finish": None}
        self._change(job, "cancelled", UNFINISHED, "cancelled", **ended)
        announce(self._session, job, job.status)
        after_commit(self._session, lambda: self._services.cancel(job_id))
        return self._present(job)

    def pause(self, job_id: str) -> JobObject:
        """Pause a job so that it can be resumed: its run saves its state and frees the slot. 400 if finished."""
        job = self._jobs.get(job_id)
        self._change(job, PAUSED, ACTIVE, "paused", estimated_finish=None)
        return self._present(job)

    def resume(self, job_id: str) -> JobObject:
        """Queue a paused job again; it resumes from its last checkpoint. Raises 400 for any other job."""
        job = self._jobs.get(job_id)
        if job.status == PAUSED:
            limits = self._services.settings.limits
            require_more_time(self._session, self._project.project_id, limits, job.run_seconds * job.gpus)
        again = {"attempt": job.attempt + 1, "turn": None}
        self._change(job, "queued", (PAUSED,), "resumed", **again)
        after_commit(self._session, lambda: self._services.enqueue(job_id))
        return self._present(job)

    def prune(self, job_id: str) -> JobPruned:
        """Remove the folder of a finished job once this is committed; 400 for one that has not finished."""
        job = self._jobs.get(job_id)
        if job.status not in FINISHED:
            raise ApiError(
                400,
                f"The job {job.id} has not finished: its status is {job.status!r}, so its checkpoints are needed.",
                code="job_not_finished",
            )
        if job.status == "cancelled" and now() - (job.finished_at or 0) < ENDING_SECONDS:
            raise ApiError(
                400,
                f"The job {job.id} was cancelled less than {ENDING_SECONDS} seconds ago, so its training may still "
                "be ending: try again later.",
                code="job_not_finished",
            )
        Audit(self._session, self._project).record("job.pruned", job_id)
        after_commit(self._session, lambda: self._services.runs.prune(job_id))
        return JobPruned(id=job_id)

    def events(
        self,
        job_id: str,
        query: PageQuery,
        type: str | None = None,  # noqa: A002 - OpenAI's name
    ) -> ListObject[EventObject]:
        """A page of a job's events, newest first; optionally of one type."""
        page = self._events.list(self._jobs.get(job_id).id, query, type)
        return ListObject(data=[present_event(event) for event in page.items], has_more=page.has_more)

    def checkpoints(self, job_id: str, query: PageQuery) -> CursorListObject[CheckpointObject]:
        """A page of a job's published checkpoints, newest first."""
        page = self._checkpoints.list(self._jobs.get(job_id).id, query)
        return CursorListObject.of(page, present_checkpoint)

    def metrics(self, job_id: str, names: Collection[str], max_points: int) -> JobMetrics:
        """A job's metrics as series of at most `max_points` points."""
        return collect(job_id, self._events.metrics(self._jobs.get(job_id).id), names, max_points)

    def log(self, job_id: str, lines: int) -> JobLog:
        """The last lines of a job's training log."""
        job, settings = self._jobs.get(job_id), self._services.settings
        found, more = log_tail(RunFolder(settings.jobs_dir / job.id).log, lines, settings.root)
        return JobLog(job_id=job.id, lines=found, has_more=more)

    def recipe(self, job_id: str) -> str:
        """The job's recipe as YAML, with names instead of this server's paths, and without its stores."""
        root = self._services.settings.root
        recipe = _without_paths(self._jobs.get(job_id).recipe, root)
        for section, store in (("training", "reference_folder"), ("data", "token_folder")):
            if section in recipe:
                recipe[section] = recipe[section] | {store: None}
        return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)

    def report(self, job_id: str) -> bytes:
        """The report of the job's run, an HTML page. Raises 404 if there is none yet, or no more."""
        job = self._jobs.get(job_id)
        try:
            return RunFolder(self._services.settings.jobs_dir / job.id).report.read_bytes()
        except FileNotFoundError:
            raise ApiError(404, _no_report(job), code="report_not_found") from None

    def _change(self, job: Job, status: str, only_from: Sequence[str], done: str, **values: Any) -> None:
        if not self._jobs.change(job, status, only_from=only_from, **values):
            over = job.status in FINISHED
            raise ApiError(
                400,
                f"The job {job.id} {'has already finished' if over else f'cannot be {done}'}: "
                f"its status is {job.status!r}.",
                code="job_already_finished" if over else "invalid_job_status",
            )
        self._report(job, "info", f"The job was {done}")

    def _hold_file(self, param: str, file_id: str) -> None:
        """Lock the file: it still exists, and is not deleted before the job is stored. Raises 404 otherwise."""
        if FileRepository(self._session, self._project.project_id).lock(file_id) is None:
            raise not_found("file", file_id, param=param)

    def _hold_model(self, name: str) -> None:
        """Like `_hold_file`, for a model."""
        if ModelRepository(self._session, self._project.project_id).lock(name) is None:
            raise not_found("model", name, param="model")

    def _report(self, job: Job, level: str, message: str) -> None:
        event = Event(
            id=new_id(EVENT),
            job_id=job.id,
            created_at=now(),
            level=level,
            message=message,
            type="message",
        )
        self._events.add(event)

    def _present(self, job: Job) -> JobObject:
        place = places(self._session, [job]).get(job.id)
        return present_job(job, self._project, place)


def _no_report(job: Job) -> str:
    """The sentence that says why a job has no report."""
    if job.pruned_at is not None:
        return f"The job {job.id} has no report any more: its folder was removed."
    if job.status in FINISHED:
        return (
            f"The job {job.id} has no report: its training wrote none, for example because it made no step."
        )
    return (
        f"The job {job.id} has no report yet: it is written when training ends. Its status is {job.status!r}."
    )


def _without_paths(value: Any, root: Path) -> Any:
    """`value` with every path under `root` replaced by its last part: a model name, or the id of a file or job.

    A model's name is written as in the folder of its archive.
    """
    if isinstance(value, dict):
        return {key: _without_paths(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item, root) for item in value]
    if isinstance(value, str) and value.startswith(f"{root}/"):
        return Path(value).name.replace(":", "_")
    return value


async def get_service(session: SessionDep, project: ProjectDep, services: ServicesDep) -> JobService:
    """The service for one request."""
    return JobService(session, project, services)


JobServiceDep = Annotated[JobService, Depends(get_service)]
