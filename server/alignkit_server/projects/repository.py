"""Queries on all projects; only admins get here."""

from sqlalchemy import select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from alignkit_server.errors import ApiError, not_found
from alignkit_server.pagination import Page, PageQuery
from alignkit_server.tables import Project


class ProjectRepository:
    """All projects."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, id: str, *, param: str | None = None) -> Project:  # noqa: A002 - the column's name
        """The project with that id. Raises 404 if there is none."""
        project = self._session.get(Project, id)
        if project is None:
            raise not_found("project", id, param=param)
        return project

    def lock(self, id: str) -> Project:  # noqa: A002 - the column's name
        """The project, locked against changes by others until the end of the transaction."""
        self._session.execute(select(Project.id).where(Project.id == id).with_for_update(key_share=True))
        return self.get(id)

    def page(self, query: PageQuery) -> Page[Project]:
        """A page of projects, newest first."""
        statement = select(Project)
        if query.after is not None:
            last = self.get(query.after, param="after")
            older = tuple_(Project.created_at, Project.id) < (last.created_at, last.id)
            statement = statement.where(older)
        ordered = statement.order_by(Project.created_at.desc(), Project.id.desc())
        rows = list(self._session.scalars(ordered.limit(query.limit + 1)))
        return Page(rows[: query.limit], has_more=len(rows) > query.limit)

    def add(self, project: Project) -> None:
        """Store a new project. Raises 409 if its name is taken."""
        self._session.add(project)
        try:
            self._session.flush()
        except IntegrityError as error:
            raise ApiError(
                409, f"The project {project.name!r} already exists.", param="name", code="project_exists"
            ) from error
