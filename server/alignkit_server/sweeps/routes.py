"""/v1/fine_tuning/sweeps."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query, Response

from alignkit_server.dependencies import NeedsSpace, ProjectDep, ServicesDep
from alignkit_server.errors import documented
from alignkit_server.jobs.idempotency import Idempotency, created_before, key_of
from alignkit_server.pagination import After, CursorListObject, PageQuery
from alignkit_server.report_response import REPORT_RESPONSE, report_response
from alignkit_server.sweeps.preparation import prepare_sweep
from alignkit_server.sweeps.repository import SweepRepository
from alignkit_server.sweeps.schemas import SweepObject, SweepRequest
from alignkit_server.sweeps.service import SweepServiceDep

router = APIRouter(prefix="/v1/fine_tuning/sweeps", tags=["fine-tuning"])


@router.post("", responses=documented(404, 409, 507), dependencies=[NeedsSpace])
async def create_sweep(
    body: SweepRequest,
    project: ProjectDep,
    services: ServicesDep,
    sweeps: SweepServiceDep,
    idempotency_key: Annotated[str | None, key_of("sweep")] = None,
) -> SweepObject:
    """Create a job at every combination of some hyperparameters. Refused as a whole if one of them is invalid."""
    idempotency = Idempotency.of(idempotency_key, body) if idempotency_key is not None else None
    if idempotency and (
        known := await to_thread.run_sync(created_before, idempotency, SweepRepository, project, services)
    ):
        return await to_thread.run_sync(sweeps.get, known)
    prepared = await services.file_checks.run(
        project.project_id, lambda: prepare_sweep(body, project, services)
    )
    return await to_thread.run_sync(sweeps.create, prepared, idempotency)


@router.get("", responses=documented(404))
def list_sweeps(
    sweeps: SweepServiceDep, after: After = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> CursorListObject[SweepObject]:
    """List sweeps, newest first, without their jobs' metrics."""
    return sweeps.list(PageQuery(after, limit))


@router.get("/{sweep_id}", responses=documented(404))
async def retrieve_sweep(
    sweep_id: str, project: ProjectDep, services: ServicesDep, sweeps: SweepServiceDep
) -> SweepObject:
    """Retrieve a sweep and the table of its jobs."""
    return await services.records.run(project.project_id, lambda: sweeps.get(sweep_id))


@router.get("/{sweep_id}/report", responses=documented(404) | REPORT_RESPONSE, response_class=Response)
async def retrieve_sweep_report(
    sweep_id: str, project: ProjectDep, services: ServicesDep, sweeps: SweepServiceDep
) -> Response:
    """Download the report of a sweep as it stands, an HTML page: its table, and the frontier of reward against KL."""
    found = await services.records.run(project.project_id, lambda: sweeps.report(sweep_id))
    page = await services.file_checks.run(project.project_id, found.page)
    return report_response(page, sweep_id)


@router.post("/{sweep_id}/cancel", responses=documented(404))
def cancel_sweep(sweep_id: str, sweeps: SweepServiceDep) -> SweepObject:
    """Cancel a sweep and its jobs that have not finished."""
    return sweeps.cancel(sweep_id)
