"""/v1/fine_tuning/jobs."""

import re
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Header, Query, Request, Response

from alignkit_server.dependencies import NeedsSpace, ProjectDep, ServicesDep
from alignkit_server.errors import ApiError, documented
from alignkit_server.jobs.idempotency import Idempotency, created_before, key_of
from alignkit_server.jobs.log_tail import MAX_LINES
from alignkit_server.jobs.preparation import prepare
from alignkit_server.jobs.repository import JobRepository
from alignkit_server.jobs.schemas import (
    CheckpointObject,
    EventObject,
    JobLog,
    JobMetrics,
    JobObject,
    JobPruned,
    JobRequest,
)
from alignkit_server.jobs.service import JobServiceDep
from alignkit_server.jobs.stream import EventStream
from alignkit_server.keys.service import Principal
from alignkit_server.limits.quotas import limits_of
from alignkit_server.pagination import After, CursorListObject, ListObject, PageQuery
from alignkit_server.pools.listening import ListenerResponse
from alignkit_server.report_response import REPORT_RESPONSE, report_response
from alignkit_server.services import Services

EVENT_STREAM = "text/event-stream"
YAML = "application/yaml"
Limit = Annotated[int, Query(ge=1, le=1000)]
EventType = Literal["message", "metrics"]
Stream = Annotated[bool, Query(description="stream events as they occur, oldest first, until the job ends")]
LastEventId = Annotated[str | None, Header(description="continue after the event with this id")]
RECIPE_RESPONSE: dict[int | str, dict[str, Any]] = {200: {"content": {YAML: {"schema": {"type": "object"}}}}}
STREAM_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {EVENT_STREAM: {}}, "description": "A page, or with ?stream=true a stream, of events"},
    204: {"description": "The job has ended and its last event was already received"},
}
_LABEL = re.compile(r"metadata\[([^\"\\\x00]{1,64})\]")

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])


@router.post("", responses=documented(404, 409, 507), dependencies=[NeedsSpace])
async def create_job(
    body: JobRequest,
    project: ProjectDep,
    services: ServicesDep,
    jobs: JobServiceDep,
    idempotency_key: Annotated[str | None, key_of("job")] = None,
) -> JobObject:
    """Create a fine-tuning job. Refused as a whole if the model, a file or a hyperparameter is invalid."""
    idempotency = Idempotency.of(idempotency_key, body) if idempotency_key is not None else None
    if idempotency and (
        known := await to_thread.run_sync(created_before, idempotency, JobRepository, project, services)
    ):
        return await to_thread.run_sync(jobs.get, known)
    prepared = await services.file_checks.run(
        project.project_id, lambda: prepare(body, project, services, renders=True)
    )
    return await to_thread.run_sync(jobs.create, prepared, idempotency)


@router.get("", responses=documented(404))
def list_jobs(
    request: Request,
    jobs: JobServiceDep,
    after: After = None,
    limit: Limit = 20,
    metadata: Annotated[
        str | None,
        Query(
            description="`metadata[key]=value` for jobs with this label, `metadata=null` for jobs without labels"
        ),
    ] = None,
) -> ListObject[JobObject]:
    """List fine-tuning jobs, newest first."""
    labels = _labels(request)
    if metadata not in {None, "", "null"} or (metadata == "null" and labels):
        raise ApiError(
            400, "metadata: expected metadata[key]=value, or only metadata=null.", param="metadata"
        )
    return jobs.list(None if metadata == "null" else labels, PageQuery(after, limit))


@router.get("/{job_id}", responses=documented(404))
def retrieve_job(job_id: str, jobs: JobServiceDep) -> JobObject:
    """Retrieve a fine-tuning job."""
    return jobs.get(job_id)


@router.post("/{job_id}/cancel", responses=documented(404))
def cancel_job(job_id: str, jobs: JobServiceDep) -> JobObject:
    """Cancel a fine-tuning job that has not finished."""
    return jobs.cancel(job_id)


@router.post("/{job_id}/pause", responses=documented(404))
def pause_job(job_id: str, jobs: JobServiceDep) -> JobObject:
    """Pause a fine-tuning job: it saves its state, frees its slot, and can be resumed."""
    return jobs.pause(job_id)


@router.post("/{job_id}/resume", responses=documented(404))
def resume_job(job_id: str, jobs: JobServiceDep) -> JobObject:
    """Resume a paused fine-tuning job from its last checkpoint, once a slot is free."""
    return jobs.resume(job_id)


@router.post("/{job_id}/prune", responses=documented(404))
def prune_job(job_id: str, jobs: JobServiceDep) -> JobPruned:
    """Remove a finished job's checkpoints, samples and logs from the disk. Its models, events and metrics stay."""
    return jobs.prune(job_id)


@router.get(
    "/{job_id}/events",
    responses=documented(404) | STREAM_RESPONSES,
    response_model=ListObject[EventObject],
)
def list_events(
    *,
    job_id: str,
    project: ProjectDep,
    services: ServicesDep,
    jobs: JobServiceDep,
    after: After = None,
    limit: Limit = 20,
    type: EventType | None = None,  # noqa: A002 - OpenAI's name
    stream: Stream = False,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
    last_event_id: LastEventId = None,
) -> Any:
    """List a job's events, newest first, or stream them."""
    if not stream and EVENT_STREAM not in accept:
        return jobs.events(job_id, PageQuery(after, limit), type)
    return _stream(services, project, job_id, last_event_id, type)


@router.get("/{job_id}/metrics", responses=documented(404) | STREAM_RESPONSES, response_model=JobMetrics)
async def retrieve_metrics(
    *,
    job_id: str,
    project: ProjectDep,
    services: ServicesDep,
    jobs: JobServiceDep,
    names: Annotated[
        str | None, Query(description="comma-separated names, such as train_loss,valid_loss; all by default")
    ] = None,
    max_points: Annotated[
        int, Query(ge=4, le=10_000, description="maximum points per series; minima and maxima are kept")
    ] = 1000,
    stream: Stream = False,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
    last_event_id: LastEventId = None,
) -> Any:
    """Retrieve a job's metrics as series over its steps, or stream its metrics events."""
    if not stream and EVENT_STREAM not in accept:
        wanted = names.split(",") if names else ()
        return await services.records.run(
            project.project_id, lambda: jobs.metrics(job_id, wanted, max_points)
        )
    return await to_thread.run_sync(_stream, services, project, job_id, last_event_id, "metrics")


@router.get("/{job_id}/logs", responses=documented(404))
def retrieve_log(
    job_id: str,
    jobs: JobServiceDep,
    tail: Annotated[int, Query(ge=1, le=MAX_LINES, description="maximum number of lines")] = 100,
) -> JobLog:
    """Retrieve the last lines of a job's training log."""
    return jobs.log(job_id, tail)


@router.get("/{job_id}/recipe", responses=documented(404) | RECIPE_RESPONSE, response_class=Response)
def retrieve_recipe(job_id: str, jobs: JobServiceDep) -> Response:
    """Download the job's recipe, for example to run it elsewhere."""
    headers = {"content-disposition": f'attachment; filename="{job_id}.yaml"'}
    return Response(jobs.recipe(job_id), media_type=YAML, headers=headers)


@router.get("/{job_id}/report", responses=documented(404) | REPORT_RESPONSE, response_class=Response)
def retrieve_report(job_id: str, jobs: JobServiceDep) -> Response:
    """Download the report of the job's run, one HTML page that is written when training ends, pauses or fails."""
    return report_response(jobs.report(job_id), job_id)


@router.get("/{job_id}/checkpoints", responses=documented(404))
def list_checkpoints(
    job_id: str, jobs: JobServiceDep, after: After = None, limit: Limit = 10
) -> CursorListObject[CheckpointObject]:
    """List the usable checkpoints of a job, newest first."""
    return jobs.checkpoints(job_id, PageQuery(after, limit))


def _stream(
    services: Services, project: Principal, job_id: str, last_event_id: str | None, kind: str | None = None
) -> Response:
    looks = services.listening.looks
    events = EventStream.open(
        services.database, looks, project, job_id, last_event_id=last_event_id, type=kind
    )
    if last_event_id and events.exhausted():
        return Response(status_code=204)
    most = limits_of(project.limits, services.settings.limits).streams_open
    return ListenerResponse(events.chunks(), services.listening.held, project, most)


def _labels(request: Request) -> dict[str, str]:
    """The `metadata[key]=value` pairs of the query."""
    labels = {}
    for name, value in request.query_params.items():
        if name.startswith("metadata["):
            match = _LABEL.fullmatch(name)
            if match is None:
                raise ApiError(400, f"{name!r}: expected metadata[key]=value.", param="metadata")
            labels[match[1]] = value
    return labels
