"""/v1/key, for every key; /v1/organization/projects: projects, limits and keys, only with the scope admin."""

from typing import Annotated

from fastapi import APIRouter, Query

from alignkit_server.errors import documented
from alignkit_server.pagination import After, CursorListObject, PageQuery
from alignkit_server.projects.schemas import (
    KeyDeleted,
    KeyObject,
    KeyRequest,
    KeyRotation,
    KeyUpdate,
    NewKeyObject,
    OwnKeyObject,
    ProjectObject,
    ProjectRequest,
    ProjectUpdate,
)
from alignkit_server.projects.service import KeyServiceDep, OwnKeyServiceDep, ProjectServiceDep

Limit = Annotated[int, Query(ge=1, le=100)]

router = APIRouter(prefix="/v1/organization/projects", tags=["projects"])
own_key = APIRouter(prefix="/v1/key", tags=["projects"])


@own_key.get("", responses=documented())
def retrieve_own_key(key: OwnKeyServiceDep) -> OwnKeyObject:
    """Retrieve the key that the request is made with: its scopes, project, limits and usage."""
    return key.get()


@router.post("", responses=documented(400, 409))
def create_project(body: ProjectRequest, projects: ProjectServiceDep) -> ProjectObject:
    """Create a project."""
    return projects.create(body.name)


@router.get("", responses=documented(400, 404))
def list_projects(
    projects: ProjectServiceDep, after: After = None, limit: Limit = 20
) -> CursorListObject[ProjectObject]:
    """List projects, newest first."""
    return projects.list(PageQuery(after, limit))


@router.get("/{project_id}", responses=documented(404))
def retrieve_project(project_id: str, projects: ProjectServiceDep) -> ProjectObject:
    """Retrieve a project with its limits and usage."""
    return projects.get(project_id)


@router.post("/{project_id}", responses=documented(400, 404))
def update_project(project_id: str, body: ProjectUpdate, projects: ProjectServiceDep) -> ProjectObject:
    """Change a project's limits."""
    return projects.limit(project_id, body.limits)


@router.post("/{project_id}/api_keys", responses=documented(400, 404))
def create_key(body: KeyRequest, keys: KeyServiceDep) -> NewKeyObject:
    """Create a key. Only this answer contains its value."""
    return keys.create(body)


@router.get("/{project_id}/api_keys", responses=documented(400, 404))
def list_keys(keys: KeyServiceDep, after: After = None, limit: Limit = 20) -> CursorListObject[KeyObject]:
    """List a project's keys, newest first."""
    return keys.list(PageQuery(after, limit))


@router.get("/{project_id}/api_keys/{key_id}", responses=documented(404))
def retrieve_key(key_id: str, keys: KeyServiceDep) -> KeyObject:
    """Retrieve a key, without its value."""
    return keys.get(key_id)


@router.post("/{project_id}/api_keys/{key_id}", responses=documented(400, 404))
def update_key(key_id: str, body: KeyUpdate, keys: KeyServiceDep) -> KeyObject:
    """Change a key's scopes or expiry."""
    return keys.update(key_id, body)


@router.post("/{project_id}/api_keys/{key_id}/rotate", responses=documented(400, 404))
def rotate_key(key_id: str, keys: KeyServiceDep, body: KeyRotation = KeyRotation()) -> NewKeyObject:
    """Replace a key by a new one. Only this answer contains the new value."""
    return keys.rotate(key_id, body)


@router.delete("/{project_id}/api_keys/{key_id}", responses=documented(404))
def delete_key(key_id: str, keys: KeyServiceDep) -> KeyDeleted:
    """Revoke a key."""
    return keys.delete(key_id)
