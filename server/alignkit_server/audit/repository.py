"""Queries on the audit log; not narrowed to a project, since only an admin gets here."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import Select, delete, select
from sqlalchemy.orm import Session

from alignkit_server.database import Database
from alignkit_server.errors import ApiError, not_found
from alignkit_server.pagination import Page
from alignkit_server.tables import AuditLog

BATCH = 1000


@dataclass(frozen=True, slots=True)
class Wanted:
    """A filter of entries; an empty list matches all."""

    project_ids: Sequence[str] = ()
    event_types: Sequence[str] = ()
    actor_ids: Sequence[str] = ()
    actor_emails: Sequence[str] = ()
    resource_ids: Sequence[str] = ()
    times: dict[str, int] = field(default_factory=dict)
    """Bounds on the time, Unix seconds, by "gt", "gte", "lt" or "lte"."""


class AuditRepository:
    """Every entry."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def page(self, wanted: Wanted, *, after: str | None, before: str | None, limit: int) -> Page[AuditLog]:
        """A page of entries, newest first: those that follow `after`, or those right before `before`."""
        if after is not None and before is not None:
            raise ApiError(
                400, "Expected `after` or `before`, found both.", param="before", code="invalid_value"
            )
        statement = _narrowed(wanted)
        if before is not None:
            statement = statement.where(AuditLog.seq > self._position(before, "before"))
            rows = list(self._session.scalars(statement.order_by(AuditLog.seq).limit(limit + 1)))
            return Page(rows[:limit][::-1], has_more=len(rows) > limit)
        if after is not None:
            statement = statement.where(AuditLog.seq < self._position(after, "after"))
        rows = list(self._session.scalars(statement.order_by(AuditLog.seq.desc()).limit(limit + 1)))
        return Page(rows[:limit], has_more=len(rows) > limit)

    def _position(self, id: str, param: str) -> int:  # noqa: A002 - the column's name
        seq = self._session.scalar(select(AuditLog.seq).where(AuditLog.id == id))
        if seq is None:
            raise not_found("audit log", id, param=param)
        return seq


def _narrowed(wanted: Wanted) -> Select[AuditLog]:
    statement = select(AuditLog)
    for column, values in (
        (AuditLog.project_id, wanted.project_ids),
        (AuditLog.type, wanted.event_types),
        (AuditLog.actor_key_id, wanted.actor_ids),
        (AuditLog.resource_id, wanted.resource_ids),
    ):
        if values:
            statement = statement.where(column.in_(values))
    if wanted.actor_emails:  # nobody has one here
        statement = statement.where(AuditLog.seq.is_(None))
    at = AuditLog.effective_at
    conditions = {"gt": at.__gt__, "gte": at.__ge__, "lt": at.__lt__, "lte": at.__le__}
    return statement.where(*(conditions[name](value) for name, value in wanted.times.items()))


def forget(database: Database, before: int) -> None:
    """Remove the entries of actions before that time, in batches."""
    while True:
        old = select(AuditLog.seq).where(AuditLog.effective_at < before).limit(BATCH)
        with database.reading() as session:
            if session.scalar(old.limit(1)) is None:
                return
        with database.writing() as session:
            session.execute(delete(AuditLog).where(AuditLog.seq.in_(old)))
