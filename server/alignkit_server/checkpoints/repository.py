"""Queries on permissions."""

from collections.abc import Sequence

from sqlalchemy import select

from alignkit_server.pagination import Page, PageQuery
from alignkit_server.scoped import ScopedRepository
from alignkit_server.tables import Permission, Project


class PermissionRepository(ScopedRepository[Permission]):
    """The permissions granted by one project."""

    table = Permission
    kind = "checkpoint permission"

    def list(self, model_id: str, grantee_id: str | None, query: PageQuery) -> Page[Permission]:
        """A page of the permissions on a model, optionally only those of one grantee project."""
        statement = self.select().where(Permission.model_id == model_id)
        if grantee_id is not None:
            statement = statement.where(Permission.grantee_id == grantee_id)
        return self.page(statement, query)

    def of(self, model_id: str, grantee_id: str) -> Permission | None:
        """The grantee project's permission on a model, or None."""
        query = self.select().where(Permission.model_id == model_id, Permission.grantee_id == grantee_id)
        return self._session.scalar(query)

    def unknown(self, project_ids: Sequence[str]) -> str | None:
        """The first of the ids that belongs to no project, or None."""
        known = set(self._session.scalars(select(Project.id).where(Project.id.in_(project_ids))))
        return next((project_id for project_id in project_ids if project_id not in known), None)
