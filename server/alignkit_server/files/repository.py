"""Queries on files."""

from sqlalchemy import Select, or_

from alignkit_server.clock import now
from alignkit_server.in_use import unfinished_job, uses_file
from alignkit_server.pagination import Page, PageQuery
from alignkit_server.scoped import ScopedRepository
from alignkit_server.tables import File


class FileRepository(ScopedRepository[File]):
    """One project's files; expired files are treated as missing."""

    table = File
    kind = "file"

    def select(self) -> Select[File]:
        """The project's files that have not expired."""
        return super().select().where(or_(File.expires_at.is_(None), File.expires_at > now()))

    def list(self, purpose: str | None, query: PageQuery) -> Page[File]:
        """A page of the files, optionally of one purpose."""
        statement = self.select()
        return self.page(statement if purpose is None else statement.where(File.purpose == purpose), query)

    def lock(self, id: str) -> File | None:  # noqa: A002 - the column's name
        """The file, locked until the end of the transaction against deletion and use by others."""
        return self._session.scalar(self.select().where(File.id == id).with_for_update())

    def user_of(self, id: str) -> str | None:  # noqa: A002 - the column's name
        """The id of an unfinished job that uses the file, or None."""
        return unfinished_job(self._session, self._project_id, uses_file(id))
