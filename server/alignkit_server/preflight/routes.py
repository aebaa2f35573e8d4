"""/v1/fine_tuning/preview and /v1/fine_tuning/jobs/estimate: check a job's request without creating the job."""

from fastapi import APIRouter, Request

from alignkit_server.dependencies import ProjectDep, ServicesDep
from alignkit_server.errors import documented
from alignkit_server.jobs.preparation import prepare
from alignkit_server.jobs.schemas import JobRequest
from alignkit_server.preflight import service
from alignkit_server.preflight.schemas import EstimateObject, PreviewObject, PreviewRequest

router = APIRouter(prefix="/v1/fine_tuning", tags=["fine-tuning"])


@router.post("/preview", responses=documented(404))
async def preview_job(
    request: Request, body: PreviewRequest, project: ProjectDep, services: ServicesDep
) -> PreviewObject:
    """Show rows of the training file as the job would train on them, with the tokens that carry loss."""
    return await services.file_checks.run(
        project.project_id, lambda: service.preview(body, prepare(body, project, services)), request
    )


@router.post("/jobs/estimate", responses=documented(404))
async def estimate_job(
    request: Request, body: JobRequest, project: ProjectDep, services: ServicesDep
) -> EstimateObject:
    """Estimate a job's tokens, steps, time and memory, and whether it fits on the training device."""
    return await services.file_checks.run(
        project.project_id,
        lambda: service.estimate(prepare(body, project, services), project, services),
        request,
    )
