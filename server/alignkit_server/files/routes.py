"""/v1/files."""

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse

from alignkit_server.dependencies import NeedsSpace, ProjectDep, ServicesDep
from alignkit_server.errors import documented
from alignkit_server.files.incoming import Space
from alignkit_server.files.schemas import PURPOSES, FileDeleted, FileObject
from alignkit_server.files.service import FileServiceDep
from alignkit_server.files.upload import receive
from alignkit_server.keys.links import DownloadLink, link_to
from alignkit_server.pagination import After, CursorListObject, Order, PageQuery

MAX_LIMIT = 10_000
FORM: dict[str, Any] = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": list(PURPOSES)},
        "expires_after": {
            "type": "object",
            "properties": {
                "anchor": {"type": "string", "enum": ["created_at"]},
                "seconds": {"type": "integer", "minimum": 3600, "maximum": 2592000},
            },
        },
    },
}
BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}}
CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}

router = APIRouter(prefix="/v1/files", tags=["files"])


@router.post("", responses=documented(413, 507), dependencies=[NeedsSpace], openapi_extra=BODY)
async def create_file(
    request: Request, project: ProjectDep, files: FileServiceDep, services: ServicesDep
) -> FileObject:
    """Upload a file."""
    space = Space(services, project.project_id)
    async with receive(request, space, services.settings.max_file_bytes) as upload:
        return await to_thread.run_sync(files.create, upload)


@router.get("", responses=documented(404))
def list_files(
    files: FileServiceDep,
    purpose: str | None = None,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = MAX_LIMIT,
    order: Order = "desc",
) -> CursorListObject[FileObject]:
    """List files."""
    return files.list(purpose, PageQuery(after, limit, order))


@router.get("/{file_id}", responses=documented(404))
def retrieve_file(file_id: str, files: FileServiceDep) -> FileObject:
    """Retrieve a file's description."""
    return files.get(file_id)


@router.delete("/{file_id}", responses=documented(404, 409))
def delete_file(file_id: str, files: FileServiceDep) -> FileDeleted:
    """Delete a file."""
    return files.delete(file_id)


@router.post("/{file_id}/content", responses=documented(404))
def link_file_content(
    file_id: str, files: FileServiceDep, project: ProjectDep, services: ServicesDep
) -> DownloadLink:
    """Get a link with which a browser downloads the file without a key: `GET` the same path with `?link=`."""
    path = f"{router.prefix}/{file_id}/content"
    return link_to(services.vault, path, project.key_id, files.get(file_id).bytes)


@router.get("/{file_id}/content", responses=documented(404) | CONTENT, response_class=FileResponse)
def retrieve_file_content(file_id: str, files: FileServiceDep) -> FileResponse:
    """Download a file's original content."""
    path, filename = files.content(file_id)
    return FileResponse(path, media_type="application/octet-stream", filename=filename)
