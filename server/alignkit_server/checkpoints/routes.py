"""/v1/fine_tuning/checkpoints/{checkpoint}/permissions."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from alignkit_server.checkpoints.schemas import PermissionDeleted, PermissionObject, PermissionRequest
from alignkit_server.checkpoints.service import PermissionServiceDep
from alignkit_server.errors import documented
from alignkit_server.pagination import After, CursorListObject, PageQuery

router = APIRouter(prefix="/v1/fine_tuning/checkpoints/{checkpoint}/permissions", tags=["fine-tuning"])


@router.post("", responses=documented(404))
def create_permissions(
    checkpoint: str, body: PermissionRequest, permissions: PermissionServiceDep
) -> CursorListObject[PermissionObject]:
    """Allow other projects to use a checkpoint or a finished model of this project."""
    return permissions.create(checkpoint, body.project_ids)


@router.get("", responses=documented(404))
def list_permissions(
    *,
    checkpoint: str,
    permissions: PermissionServiceDep,
    project_id: Annotated[str | None, Query(description="only permissions of this project")] = None,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 10,
    order: Literal["ascending", "descending"] = "descending",
) -> CursorListObject[PermissionObject]:
    """List the projects that may use a checkpoint."""
    query = PageQuery(after, limit, "asc" if order == "ascending" else "desc")
    return permissions.list(checkpoint, project_id, query)


@router.delete("/{permission_id}", responses=documented(404))
def delete_permission(
    checkpoint: str, permission_id: str, permissions: PermissionServiceDep
) -> PermissionDeleted:
    """Revoke a permission."""
    return permissions.delete(checkpoint, permission_id)
