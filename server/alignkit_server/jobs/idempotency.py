"""Creates a job or a sweep once, even if it is requested twice with the same Idempotency-Key."""

import hashlib
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Header
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from alignkit_server.errors import ApiError
from alignkit_server.keys.service import Principal
from alignkit_server.scoped import ScopedRepository
from alignkit_server.services import Services
from alignkit_server.tables import Job, Sweep

HEADER = "Idempotency-Key"
Created = TypeVar("Created", Job, Sweep)


def key_of(what: str) -> Any:
    """The header's declaration in a route that creates a `what`."""
    return Header(
        pattern=r"^[\x21-\x7e]{1,255}$", description=f"repeating a key and body returns the same {what}"
    )


@dataclass(frozen=True, slots=True)
class Idempotency:
    """The key of a request, and a hash of the request's content."""

    key: str
    request_hash: str

    @classmethod
    def of(cls, key: str, request: BaseModel) -> "Idempotency":
        """The record of a request; omitted fields count as their defaults."""
        return cls(key, hashlib.sha256(request.model_dump_json().encode()).hexdigest())

    def find(self, session: Session, rows: ScopedRepository[Created]) -> Created | None:
        """The row that was already created under this key.

        Raises 409 if it was requested with different content.
        """
        row = session.scalar(rows.select().where(rows.table.idempotency_key == self.key))
        if row is not None and row.request_hash != self.request_hash:
            kind = rows.table.__name__.lower()
            raise ApiError(
                409,
                f"The {HEADER} {self.key!r} was used for the {kind} {row.id} with another body: "
                "expected the same body, or a new key.",
                param=HEADER,
                code="idempotency_key_reused",
            )
        return row


def add_once(
    session: Session, rows: ScopedRepository[Created], row: Created, idempotency: Idempotency | None
) -> Created:
    """Store the row, or return the one that another request with the same key stored meanwhile."""
    try:
        with session.begin_nested():
            rows.add(row)
    except IntegrityError:
        first = idempotency.find(session, rows) if idempotency else None
        if first is None:
            raise
        return first
    return row


def created_before(
    idempotency: Idempotency,
    repository: type[ScopedRepository[Created]],
    project: Principal,
    services: Services,
) -> str | None:
    """The id of the row that was already created under the key, looked up before any file is read again."""
    with services.database.reading() as session:
        row = idempotency.find(session, repository(session, project.project_id))
        return None if row is None else row.id
