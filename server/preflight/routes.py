"""/v1/fine_tuning/preview and /v1/fine_tuning/jobs/estimate: a job's request, without a job."""

from fastapi import APIRouter

from server.dependencies import ProjectDep, ServicesDep
from server.errors import documented
from server.jobs.preparation import prepare
from server.jobs.schemas import JobRequest
from server.preflight import service
from server.preflight.schemas import EstimateObject, PreviewObject, PreviewRequest

router = APIRouter(prefix="/v1/fine_tuning", tags=["fine-tuning"])


@router.post("/preview", responses=documented(404))
async def preview_job(body: PreviewRequest, project: ProjectDep, services: ServicesDep) -> PreviewObject:
    """Show rows of the training file as the job would see them, and which tokens carry loss."""
    return await services.checks.run(
        project.project_id, lambda: service.preview(body, prepare(body, project, services))
    )


@router.post("/jobs/estimate", responses=documented(404))
async def estimate_job(body: JobRequest, project: ProjectDep, services: ServicesDep) -> EstimateObject:
    """Estimate a job's tokens, steps, time and memory, and whether it fits the device that jobs run on."""
    return await services.checks.run(
        project.project_id, lambda: service.estimate(prepare(body, project, services), project, services)
    )
