"""Queries on projects and keys; not narrowed to a project, since a key is what tells the project."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.keys.tables import ApiKey, Project


class KeyRepository:
    """Projects and keys of the whole service."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def any_key(self) -> bool:
        """Whether a key was ever made."""
        return self._session.scalar(select(ApiKey.id).limit(1)) is not None

    def project(self, name: str) -> Project | None:
        """The project of that name."""
        return self._session.scalar(select(Project).where(Project.name == name))

    def by_hash(self, digest: str) -> tuple[ApiKey, Project] | None:
        """The key of that hash, with its project."""
        query = select(ApiKey, Project).join(Project, ApiKey.project_id == Project.id)
        found = self._session.execute(query.where(ApiKey.hash == digest)).one_or_none()
        return None if found is None else (found[0], found[1])

    def get(self, id: str) -> ApiKey | None:  # noqa: A002 - the column's name
        """The key of that id."""
        return self._session.scalar(select(ApiKey).where(ApiKey.id == id))

    def add(self, row: Project | ApiKey) -> None:
        """Store a new row."""
        self._session.add(row)
        self._session.flush()
