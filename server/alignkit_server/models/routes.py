"""/v1/models."""

from functools import partial
from typing import Annotated, Any
from urllib.parse import quote

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from alignkit_server.dependencies import ProjectDep, ServicesDep
from alignkit_server.errors import documented
from alignkit_server.models.exports import ArchiveResponse, ModelExports
from alignkit_server.models.schemas import ArchiveOptions, ModelDeleted, ModelList, ModelObject
from alignkit_server.models.service import ModelServiceDep

TAR = "application/x-tar"
TAR_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {"content": {TAR: {"schema": {"type": "string", "format": "binary"}}}}
}
router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", responses=documented())
def list_models(models: ModelServiceDep) -> ModelList:
    """List the base models, and the fine-tuned models that the project may use."""
    return models.list()


@router.get(
    "/{model:path}/archive", responses=documented(403, 404, 429, 507) | TAR_RESPONSE, response_class=Response
)
async def download_model(
    model: str,
    request: Request,
    project: ProjectDep,
    services: ServicesDep,
    wanted: Annotated[ArchiveOptions, Query()],
) -> StreamingResponse:
    """Download a fine-tuned model as a tar archive, with its tokenizer, chat template and card.

    A form that has to be made first, merged or gguf, takes a while before the first byte.
    """
    exports = ModelExports(services, project)
    work, job_id = await to_thread.run_sync(exports.find, model, wanted)
    archive, gone = await to_thread.run_sync(exports.ready, work), None
    if archive is None:
        archive = await services.exports.run(project.project_id, partial(exports.make, work, job_id), request)
        gone = partial(exports.drop, work, job_id)
    headers = {
        "content-length": str(archive.size),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(model, safe='')}.tar",
    }
    return ArchiveResponse(archive, gone, media_type=TAR, headers=headers)


@router.get("/{model:path}", responses=documented(404))
def retrieve_model(model: str, models: ModelServiceDep) -> ModelObject:
    """Retrieve a model."""
    return models.get(model)


@router.delete("/{model:path}", responses=documented(403, 404, 409))
def delete_model(model: str, models: ModelServiceDep) -> ModelDeleted:
    """Delete a fine-tuned model."""
    return models.delete(model)
