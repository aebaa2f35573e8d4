"""The base of every repository of a request: the one place that restricts rows to a project."""

from typing import Any, ClassVar, Generic, TypeVar

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from alignkit_server.errors import not_found
from alignkit_server.pagination import Page, PageQuery
from alignkit_server.tables.base import Owned

Row = TypeVar("Row", bound=Owned)


class ScopedRepository(Generic[Row]):
    """Rows of one table that belong to one project. Every query of a subclass starts from `select()`."""

    table: type[Row]
    kind: ClassVar[str]
    """The name of a row in messages."""

    def __init__(self, session: Session, project_id: str) -> None:
        self._session = session
        self._project_id = project_id

    def select(self) -> Select[Row]:
        """A query for the project's rows."""
        return select(self.table).where(self.table.project_id == self._project_id)

    def find(self, id: str) -> Row | None:  # noqa: A002 - the column's name
        """The row with this id, or None if the project has no such row."""
        return self._session.scalar(self.select().where(self.table.id == id))

    def get(self, id: str, *, param: str | None = None) -> Row:  # noqa: A002 - the column's name
        """The row with this id. Raises 404 if the project has no such row."""
        row = self.find(id)
        if row is None:
            raise not_found(self.kind, id, param=param)
        return row

    def add(self, row: Row) -> None:
        """Store a new row for the project."""
        row.project_id = self._project_id
        self._session.add(row)
        self._session.flush()

    def delete(self, row: Row) -> None:
        """Delete a row."""
        self._session.delete(row)
        self._session.flush()

    def page(self, statement: Select[Row], query: PageQuery) -> Page[Row]:
        """The page of `statement` (built from `select()`) that follows the row `query.after`."""
        column: Any = self.table.seq
        if query.after is not None:
            last = self.find(query.after)  # `statement` may exclude it: it only marks a position
            if last is None:
                raise not_found(self.kind, query.after, param="after")
            statement = statement.where(column > last.seq if query.order == "asc" else column < last.seq)
        ordered = statement.order_by(column.asc() if query.order == "asc" else column.desc())
        rows = list(self._session.scalars(ordered.limit(query.limit + 1)))
        return Page(rows[: query.limit], has_more=len(rows) > query.limit)
