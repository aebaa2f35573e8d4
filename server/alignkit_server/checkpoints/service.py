"""Permissions on a project's checkpoints: grant, list, revoke."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends
from sqlalchemy.orm import Session

from alignkit_server.audit.record import Audit
from alignkit_server.catalog.model_catalog import own_model
from alignkit_server.checkpoints.repository import PermissionRepository
from alignkit_server.checkpoints.schemas import PermissionDeleted, PermissionObject
from alignkit_server.clock import now
from alignkit_server.dependencies import ProjectDep, SessionDep
from alignkit_server.errors import ApiError, not_found
from alignkit_server.ids import PERMISSION, new_id
from alignkit_server.keys.service import Principal
from alignkit_server.pagination import CursorListObject, Page, PageQuery
from alignkit_server.tables import Permission


class PermissionService:
    """The permissions that one project grants on its models."""

    def __init__(self, session: Session, project: Principal) -> None:
        self._session = session
        self._project = project
        self._audit = Audit(session, project)
        self._permissions = PermissionRepository(session, project.project_id)

    def create(self, checkpoint: str, project_ids: Sequence[str]) -> CursorListObject[PermissionObject]:
        """Allow projects to use a checkpoint; a project that already may keeps its permission."""
        model_id = self._model(checkpoint)
        if self._project.project_id in project_ids:
            raise ApiError(
                400,
                f"project_ids: {self._project.project_id!r} owns the checkpoint and does not need permission.",
                param="project_ids",
                code="invalid_value",
            )
        unknown = self._permissions.unknown(project_ids)
        if unknown is not None:
            raise not_found("project", unknown, param="project_ids")
        granted = [self._grant(model_id, checkpoint, grantee) for grantee in dict.fromkeys(project_ids)]
        return CursorListObject.of(Page(granted, has_more=False), _present)

    def list(
        self, checkpoint: str, project_id: str | None, query: PageQuery
    ) -> CursorListObject[PermissionObject]:
        """A page of the permissions on a checkpoint."""
        page = self._permissions.list(self._model(checkpoint), project_id, query)
        return CursorListObject.of(page, _present)

    def delete(self, checkpoint: str, permission_id: str) -> PermissionDeleted:
        """Revoke a permission."""
        model_id = self._model(checkpoint)
        permission = self._permissions.get(permission_id)
        if permission.model_id != model_id:
            raise not_found("checkpoint permission", permission_id)
        self._permissions.delete(permission)
        self._audit.record("checkpoint.permission.deleted", permission_id)
        return PermissionDeleted(id=permission_id)

    def _grant(self, model_id: str, checkpoint: str, project_id: str) -> Permission:
        permission = self._permissions.of(model_id, project_id)
        if permission is None:
            permission = Permission(
                id=new_id(PERMISSION),
                model_id=model_id,
                grantee_id=project_id,
                created_by=self._project.key_id,
                created_at=now(),
            )
            self._permissions.add(permission)
            data = {"fine_tuned_model_checkpoint": checkpoint, "project_id": project_id}
            self._audit.record("checkpoint.permission.created", permission.id, data=data)
        return permission

    def _model(self, checkpoint: str) -> str:
        return own_model(self._session, checkpoint, self._project.project_id).id


def _present(permission: Permission) -> PermissionObject:
    return PermissionObject(
        id=permission.id, created_at=permission.created_at, project_id=permission.grantee_id
    )


async def get_service(session: SessionDep, project: ProjectDep) -> PermissionService:
    """The service for one request."""
    return PermissionService(session, project)


PermissionServiceDep = Annotated[PermissionService, Depends(get_service)]
