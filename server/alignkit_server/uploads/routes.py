"""/v1/uploads."""

from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request

from alignkit_server.dependencies import NeedsSpace, ProjectDep, ServicesDep
from alignkit_server.errors import documented
from alignkit_server.files.incoming import Space
from alignkit_server.files.upload import receive
from alignkit_server.uploads.schemas import CompleteRequest, PartObject, UploadObject, UploadRequest
from alignkit_server.uploads.service import UploadServiceDep, assemble

DATA = "data"
FORM: dict[str, Any] = {
    "type": "object",
    "required": [DATA],
    "additionalProperties": False,
    "properties": {DATA: {"type": "string", "format": "binary"}},
}
BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}}

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])


@router.post("", responses=documented(413, 507), dependencies=[NeedsSpace])
def create_upload(body: UploadRequest, uploads: UploadServiceDep) -> UploadObject:
    """Open an upload in parts. It expires after an hour."""
    return uploads.create(body)


@router.post(
    "/{upload_id}/parts", responses=documented(404, 413, 507), dependencies=[NeedsSpace], openapi_extra=BODY
)
async def add_upload_part(
    upload_id: str, request: Request, project: ProjectDep, uploads: UploadServiceDep, services: ServicesDep
) -> PartObject:
    """Add a part to an upload."""
    space, most = Space(services, project.project_id), services.settings.max_part_bytes
    async with receive(request, space, most, file_field=DATA, fields=()) as received:
        return await to_thread.run_sync(uploads.add_part, upload_id, received)


@router.post("/{upload_id}/complete", responses=documented(404, 507), dependencies=[NeedsSpace])
async def complete_upload(
    upload_id: str,
    body: CompleteRequest,
    project: ProjectDep,
    services: ServicesDep,
    uploads: UploadServiceDep,
) -> UploadObject:
    """Join the parts in the given order; the result is a normal file."""

    def join() -> UploadObject:
        assembled = assemble(upload_id, body, project, services)
        try:
            return uploads.complete(assembled)
        finally:
            assembled.path.unlink(missing_ok=True)

    return await services.joins.run(project.project_id, join)


@router.post("/{upload_id}/cancel", responses=documented(404))
def cancel_upload(upload_id: str, uploads: UploadServiceDep) -> UploadObject:
    """Cancel an upload and delete its parts."""
    return uploads.cancel(upload_id)
