"""/v1/models."""

from functools import partial
from typing import Annotated, Any
from urllib.parse import quote

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from alignkit_server.children.exporting import Work
from alignkit_server.dependencies import ProjectDep, ServicesDep
from alignkit_server.errors import documented
from alignkit_server.keys.links import DownloadLink, link_to
from alignkit_server.keys.service import Principal
from alignkit_server.models.archive import Archive
from alignkit_server.models.exports import ArchiveResponse, Gone, ModelExports
from alignkit_server.models.schemas import ArchiveOptions, ModelDeleted, ModelList, ModelObject
from alignkit_server.models.service import ModelServiceDep
from alignkit_server.services import Services

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
    made: str | None = getattr(getattr(request.state, "link", None), "made", None)
    if made is not None:
        archive, work = await to_thread.run_sync(exports.kept, work, made)
        gone: Gone | None = partial(exports.drop, work, job_id)
    else:
        archive, gone = await _archive(services, project, work, job_id, request)
    headers = {
        "content-length": str(archive.size),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(model, safe='')}.tar",
    }
    return ArchiveResponse(archive, gone, media_type=TAR, headers=headers)


@router.post("/{model:path}/archive", responses=documented(403, 404, 429, 507))
async def link_model_archive(
    model: str,
    request: Request,
    project: ProjectDep,
    services: ServicesDep,
    wanted: ArchiveOptions,
) -> DownloadLink:
    """Get a link with which a browser downloads the archive without a key: `GET` the same path with `?link=`.

    A form that has to be made is made before this answers; it is kept until the link is used or has expired.
    """
    exports = ModelExports(services, project)
    work, job_id = await to_thread.run_sync(exports.find, model, wanted)
    archive, gone = await _archive(services, project, work, job_id, request)
    archive.close()
    made = None if gone is None else await to_thread.run_sync(exports.keep, work)
    return link_to(services.vault, f"{router.prefix}/{model}/archive", project.key_id, archive.size, made)


async def _archive(
    services: Services, project: Principal, work: Work, job_id: str, request: Request
) -> tuple[Archive, Gone | None]:
    """The archive, and what removes its files if they were made for it."""
    exports = ModelExports(services, project)
    archive = await to_thread.run_sync(exports.ready, work)
    if archive is not None:
        return archive, None
    archive = await services.exports.run(project.project_id, partial(exports.make, work, job_id), request)
    return archive, partial(exports.drop, work, job_id)


@router.get("/{model:path}", responses=documented(404))
def retrieve_model(model: str, models: ModelServiceDep) -> ModelObject:
    """Retrieve a model."""
    return models.get(model)


@router.delete("/{model:path}", responses=documented(403, 404, 409))
def delete_model(model: str, models: ModelServiceDep) -> ModelDeleted:
    """Delete a fine-tuned model."""
    return models.delete(model)
